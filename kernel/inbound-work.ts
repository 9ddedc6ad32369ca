/**
 * QoS 2 messages from clients that are in a pipeline, by client and packet id: a client that comes back on another
 * connection and sends such a message anew gets the outcome of the run that is under way, so that none is run twice.
 */
type Settled<T> = (outcome: T) => void;

export interface InboundWork<T> {
  /** Is this message under way? Then `settled` gets what comes of it, and nothing else is to be done. */
  join(clientId: string, packetId: number, settled: Settled<T>): boolean;
  /** It is from now on; the function that is returned ends that, with the outcome. */
  begin(clientId: string, packetId: number): Settled<T>;
  /** The packet ids that are under way. */
  ids(clientId: string): readonly number[];
  /** The client has a new session, in which its packet ids mean other messages. */
  forget(clientId: string): void;
}

export function createInboundWork<T>(): InboundWork<T> {
  const clients = new Map<string, Map<number, Settled<T>[]>>();
  return {
    join(clientId, packetId, settled) {
      const waiting = clients.get(clientId)?.get(packetId);
      waiting?.push(settled);
      return waiting !== undefined;
    },
    begin(clientId, packetId) {
      let works = clients.get(clientId);
      if (!works) clients.set(clientId, (works = new Map()));
      const its = works;
      const waiting: Settled<T>[] = [];
      its.set(packetId, waiting);
      return (outcome) => {
        its.delete(packetId);
        if (its.size === 0 && clients.get(clientId) === its) clients.delete(clientId);
        for (const settled of waiting) settled(outcome);
      };
    },
    ids: (clientId) => [...(clients.get(clientId)?.keys() ?? [])],
    forget(clientId) {
      clients.delete(clientId);
    },
  };
}
