/** Results as a page with one drawing: bars of each server a row, and a mark at the goal. */
import { ratio, type ReportRow, shown } from "./report.ts";

const width = 920;
const left = 320;
const barWidth = 400;
const barHeight = 14;
const rowGap = 14;
const colours = ["#1368ce", "#8a8f98", "#b08d57", "#5f9e8f", "#a36fa8", "#c2703d"];

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

function svgOf(report: readonly ReportRow[]): string {
  const servers = [...new Set(report.flatMap(({ results }) => results.map(({ server }) => server)))];
  const colourOf = (server: string): string => colours[servers.indexOf(server) % colours.length]!;
  const parts: string[] = [];
  let y = 10;
  for (const [n, server] of servers.entries()) {
    const x = 10 + n * 150;
    parts.push(`<rect x="${x}" y="${y}" width="12" height="12" fill="${colourOf(server)}"/>`);
    parts.push(`<text x="${x + 18}" y="${y + 11}">${escape(server)}</text>`);
  }
  const markAt = 10 + servers.length * 150;
  parts.push(`<path d="M${markAt} ${y - 2}v16" class="goal"/><text x="${markAt + 8}" y="${y + 11}">goal</text>`);
  y += 34;
  for (const { row, results, goal } of report) {
    const figures = results.map(({ best }) => best?.[row.figure] ?? 0);
    const most = Math.max(...figures, goal?.limit ?? 0) || 1;
    const scale = (value: number): number => (value / most) * barWidth;
    const height = results.length * (barHeight + 2);
    parts.push(`<text x="${left - 12}" y="${y + 11}" class="title">${escape(row.title)}</text>`);
    const aim = goal ? `; goal ${shown(goal.limit)}, ${goal.isMet ? "met" : "missed"}` : "";
    parts.push(`<text x="${left - 12}" y="${y + 26}" class="unit">${escape(row.unit + aim)}</text>`);
    const labels: string[] = [];
    for (const [n, result] of results.entries()) {
      const at = y + n * (barHeight + 2);
      const figure = figures[n]!;
      const times = ratio(row, results[0], result);
      const lost = result.best?.lost ? `, ${shown(result.best.lost)} lost` : "";
      const label = result.error ? "failed" : `${shown(figure)}${times ? ` (x ${shown(times)})` : ""}${lost}`;
      parts.push(
        `<rect x="${left}" y="${at}" width="${Math.max(1, scale(figure)).toFixed(1)}" height="${barHeight}" ` +
          `fill="${colourOf(result.server)}"/>`,
      );
      const colour = n === 0 && goal && !goal.isMet ? ' class="figure missed"' : ' class="figure"';
      labels.push(`<text x="${(left + scale(figure) + 6).toFixed(1)}" y="${at + 11}"${colour}>${escape(label)}</text>`);
    }
    if (goal) {
      const x = (left + scale(goal.limit)).toFixed(1);
      parts.push(`<path d="M${x} ${y - 3}v${height + 4}" class="goal"/>`);
    }
    parts.push(...labels);
    y += Math.max(height, 30) + rowGap;
  }
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${y}" width="${width}" height="${y}" font-family="sans-serif" font-size="12">` +
    `<style>.title{text-anchor:end;font-size:11px}.unit{text-anchor:end;fill:#667;font-size:11px}.goal{stroke:#c22;stroke-width:2;fill:none}.figure{paint-order:stroke;stroke:#fff;stroke-width:4px}.missed{fill:#c22;font-weight:bold}</style>` +
    `<rect width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>`
  );
}

/** A page; or, for a file named `.svg`, the drawing alone. */
export function pictureOf(report: readonly ReportRow[], o: { readonly note: string; readonly isSvg: boolean }): string {
  const svg = svgOf(report);
  if (o.isSvg) return svg;
  return (
    `<!doctype html><meta charset="utf-8"><title>Sluice beside others</title>` +
    `<style>body{font:14px sans-serif;max-width:960px;margin:24px auto;color:#222}</style>` +
    `<h1>Sluice beside others</h1><p>${escape(o.note)} Shorter bars are better; (x n) is how many times ours.</p>${svg}`
  );
}
