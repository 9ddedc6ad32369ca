/** One group's shared subscription to one topic filter: each message goes to one of its members [MQTT-4.8.2]. */

/** `V` is what a member has subscribed with. */
export interface SharedSubscription<M, V> {
  /** `$share/group/filter`. */
  readonly topicFilter: string;
  readonly members: ReadonlyMap<M, V>;
  set(member: M, value: V): void;
  delete(member: M): void;
  /**
   * Connected before absent, one with room before a full one, then the least loaded; equals take turns.
   * @param fits which members may be chosen; all without it
   */
  pick(fits?: (member: M) => boolean): M | undefined;
}

/** What a choice is made by, of now. `load`: messages that it has not settled. */
export interface Standing {
  readonly connected: boolean;
  readonly full: boolean;
  readonly load: number;
}

export function createSharedSubscription<M, V>(
  topicFilter: string,
  standingOf: (member: M) => Standing,
): SharedSubscription<M, V> {
  const members = new Map<M, V>();
  let order: M[] = [];
  let turn = 0;

  return {
    topicFilter,
    members,
    set(member, value) {
      if (!members.has(member)) order.push(member);
      members.set(member, value);
    },
    delete(member) {
      if (members.delete(member)) order = order.filter((each) => each !== member);
    },
    pick(fits) {
      let best: { member: M; rank: number; load: number; at: number } | undefined;
      for (let step = 0; step < order.length; step++) {
        const at = (turn + step) % order.length;
        const member = order[at] as M;
        if (fits && !fits(member)) continue;
        const { connected, full, load } = standingOf(member);
        const rank = (connected ? 0 : 2) + (full ? 1 : 0);
        if (!best || rank < best.rank || (rank === best.rank && load < best.load)) best = { member, rank, load, at };
      }
      if (best) turn = best.at + 1;
      return best?.member;
    },
  };
}
