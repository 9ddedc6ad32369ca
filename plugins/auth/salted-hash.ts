import { hash } from "node:crypto";

/** In which order salt and password are hashed: Easegress' page shows salt first, its code takes the password first. */
export type Order = "saltPassword" | "passwordSalt";

/** SHA-256 over the two, without a separator; 32 bytes. */
export function saltedSha256(order: Order, salt: Buffer, password: Buffer): Buffer {
  const parts = order === "saltPassword" ? [salt, password] : [password, salt];
  return hash("sha256", Buffer.concat(parts), "buffer");
}
