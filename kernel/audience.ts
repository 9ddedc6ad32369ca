/** Who gets a message: the sessions with a matching subscription, each once, and one member of each shared one. */
import { type Grant, grantOf, mergeGrants } from "./grant.ts";
import type { SubscriptionOptions } from "./plugin.ts";
import type { Held } from "./session-handle.ts";
import { createSharedSubscription, type SharedSubscription, type Standing } from "./shared-subscription.ts";
import { createTopicIndex, parseShared, type Subscriber } from "./topics.ts";

/** A session, by its own subscriptions or as the one that a shared subscription has picked. */
export interface Target extends Subscriber<Held, Grant> {
  readonly sharedBy?: string;
}

export interface Audience {
  /** Adds a subscription, or replaces its options. `topicFilter` may be `$share/group/filter`. */
  set(held: Held, topicFilter: string, options: SubscriptionOptions): void;
  delete(held: Held, topicFilter: string): void;
  /** Do not change it. @param from the publishing client, whose own subscriptions may have noLocal */
  match(topic: string, from: string | undefined): readonly Target[];
  /** Another member of a shared subscription, where one fits. */
  another(sharedBy: string, fits: (member: Held) => boolean): Target | undefined;
}

type Shared = SharedSubscription<Held, Grant>;

export function createAudience(cacheSize: number): Audience {
  const shared = new Map<string, Shared>();
  const index = createTopicIndex<Held | Shared, Grant>({ prefer: mergeGrants, cacheSize });

  return {
    set(held, topicFilter, options) {
      const parts = parseShared(topicFilter);
      if (!parts) {
        index.set(topicFilter, held, grantOf(options));
        return;
      }
      let group = shared.get(topicFilter);
      if (!group) {
        group = createSharedSubscription(topicFilter, standingOf);
        shared.set(topicFilter, group);
        // A placeholder: what a member gets is up to the one that is picked.
        index.set(parts.topicFilter, group, grantOf(options));
      }
      group.set(held, grantOf(options));
    },
    delete(held, topicFilter) {
      const parts = parseShared(topicFilter);
      if (!parts) {
        index.delete(topicFilter, held);
        return;
      }
      const group = shared.get(topicFilter);
      group?.delete(held);
      if (!group || group.members.size > 0) return;
      shared.delete(topicFilter);
      index.delete(parts.topicFilter, group);
    },
    match(topic, from) {
      const hits = index.match(topic);
      // The common case, in which what the index has cached will do.
      if (shared.size === 0 && !hits.some(({ key, value }) => value.own !== value && isFrom(key, from))) {
        return hits as readonly Target[];
      }
      return hits.flatMap(({ key, value }): Target[] => {
        if (!("members" in key)) {
          const grant = isFrom(key, from) ? value.own : value;
          return grant ? [{ key, value: grant }] : [];
        }
        const picked = targetOf(key, key.pick());
        return picked ? [picked] : [];
      });
    },
    another(sharedBy, fits) {
      const group = shared.get(sharedBy);
      return group && targetOf(group, group.pick(fits));
    },
  };
}

function targetOf(group: Shared, member: Held | undefined): Target | undefined {
  const grant = member && group.members.get(member);
  return member && grant && { key: member, value: grant, sharedBy: group.topicFilter };
}

function isFrom(key: Held | Shared, from: string | undefined): boolean {
  return from !== undefined && "session" in key && key.session.clientId === from;
}

function standingOf({ session, handle }: Held): Standing {
  return { connected: handle !== undefined, full: session.isCrowded(), load: session.queued + session.inflight.size };
}
