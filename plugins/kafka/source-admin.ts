/** Questions about a cluster, on one connection that is opened with the first and replaced where it is no longer good. */
import type { Admin, Kafka } from "kafkajs";

export interface SourceAdmin {
  /** Rejects where it can't be answered; the next question is asked on a new connection then. */
  ask<T>(question: (admin: Admin) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

export function createSourceAdmin(kafka: Kafka): SourceAdmin {
  let admin: Promise<Admin> | undefined;

  async function open(): Promise<Admin> {
    const made = kafka.admin({ retry: { retries: 2 } });
    await made.connect();
    return made;
  }

  return {
    async ask(question) {
      const asked = (admin ??= open());
      try {
        return await question(await asked);
      } catch (error) {
        // kafkajs' admin does not get over a connection that is no longer good.
        if (admin === asked) admin = undefined;
        void asked.then((each) => each.disconnect()).catch(() => undefined);
        throw error;
      }
    },
    async close() {
      const opened = await admin?.catch(() => undefined);
      await opened?.disconnect().catch(() => undefined);
    },
  };
}
