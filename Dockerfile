# The gateway in an image: not root, nothing of it writable but /sluice/data. See docs/install.md.
FROM node:24-slim AS pack
WORKDIR /workspace
COPY . .
RUN npm run --silent install:all && npm run --silent pack:all /tarballs

# As it is published: JavaScript and what it needs at run time.
FROM node:24-slim AS install
WORKDIR /opt/sluice
COPY --from=pack /tarballs /tarballs
RUN npm install --ignore-scripts --no-audit --no-fund --loglevel=error /tarballs/*.tgz \
  && rm package.json package-lock.json

FROM node:24-slim
ENV NODE_ENV=production PATH=/opt/sluice/node_modules/.bin:$PATH
COPY --from=install /opt/sluice /opt/sluice
WORKDIR /sluice
COPY config/sluice.yaml config/sluice-kafka.yaml config/sluice-cluster.yaml config/
RUN install -d -o 1000 -g 1000 data
VOLUME /sluice/data
EXPOSE 1883
USER 1000:1000
HEALTHCHECK CMD ["node", "-e", "fetch(`${process.env.SLUICE_API || 'http://127.0.0.1:2381'}/readyz`).then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["sluice"]
CMD ["run"]
