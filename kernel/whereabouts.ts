/** What clients have left at workers that they are no longer connected to: wills that wait, messages in a pipeline. */

export interface Whereabouts<L> {
  /** The workers that have something of this client. */
  of(clientId: string): readonly L[];
  willWaits(link: L, clientId: string, waits: boolean): void;
  /** QoS 2 messages that were in a pipeline when its connection ended. */
  works(link: L, clientId: string, packetIds: readonly number[]): void;
  workEnded(link: L, clientId: string, packetId: number): void;
  /** Its session has ended, and with it what its packet ids meant. */
  forgetWorks(link: L, clientId: string): void;
  /** Those at other workers than this one. */
  worksElsewhere(link: L, clientId: string): readonly number[];
  /** A worker has ended; answers what was in its pipelines. */
  gone(link: L): readonly { readonly clientId: string; readonly packetIds: readonly number[] }[];
}

interface Left {
  hasWill: boolean;
  readonly packetIds: Set<number>;
}

export function createWhereabouts<L>(): Whereabouts<L> {
  const clients = new Map<string, Map<L, Left>>();

  function at(link: L, clientId: string): Left {
    let links = clients.get(clientId);
    if (!links) clients.set(clientId, (links = new Map()));
    let left = links.get(link);
    if (!left) links.set(link, (left = { hasWill: false, packetIds: new Set() }));
    return left;
  }

  function tidy(link: L, clientId: string): void {
    const links = clients.get(clientId);
    const left = links?.get(link);
    if (left && !left.hasWill && left.packetIds.size === 0) links?.delete(link);
    if (links?.size === 0) clients.delete(clientId);
  }

  return {
    of: (clientId) => [...(clients.get(clientId)?.keys() ?? [])],
    willWaits(link, clientId, waits) {
      at(link, clientId).hasWill = waits;
      tidy(link, clientId);
    },
    works(link, clientId, packetIds) {
      const left = at(link, clientId);
      for (const packetId of packetIds) left.packetIds.add(packetId);
    },
    workEnded(link, clientId, packetId) {
      at(link, clientId).packetIds.delete(packetId);
      tidy(link, clientId);
    },
    forgetWorks(link, clientId) {
      at(link, clientId).packetIds.clear();
      tidy(link, clientId);
    },
    worksElsewhere(link, clientId) {
      const links = clients.get(clientId);
      if (!links) return [];
      const found = new Set<number>();
      for (const [other, { packetIds }] of links) if (other !== link) for (const id of packetIds) found.add(id);
      return [...found];
    },
    gone(link) {
      const lost: { clientId: string; packetIds: number[] }[] = [];
      for (const [clientId, links] of clients) {
        const left = links.get(link);
        if (left && left.packetIds.size > 0) lost.push({ clientId, packetIds: [...left.packetIds] });
        links.delete(link);
        if (links.size === 0) clients.delete(clientId);
      }
      return lost;
    },
  };
}
