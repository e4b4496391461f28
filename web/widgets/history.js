/** What was drawn before, to go back to. */

const DEPTH = 200

/**
 * @template T
 * @typedef {object} History
 * @property {() => T} value as it is now
 * @property {(next: T, merge?: string) => void} set changes that follow each other with the same `merge` are one
 * @property {() => boolean} undo whether there was anything to go back to
 * @property {() => boolean} redo
 * @property {() => boolean} canUndo
 * @property {() => boolean} canRedo
 */

/**
 * A value that is never changed, only replaced, and what it was and will be again.
 * @template T
 * @param {T} start @returns {History<T>}
 */
export function historyOf(start) {
  /** @type {T[]} */
  let before = []
  /** @type {T[]} */
  let after = []
  let now = start
  /** @type {string | undefined} */
  let last

  return {
    value: () => now,
    set(next, merge) {
      if (!(merge && merge === last)) before = [...before.slice(-DEPTH + 1), now]
      after = []
      now = next
      last = merge
    },
    undo() {
      if (!before.length) return false
      after = [...after, now]
      now = /** @type {T} */ (before.at(-1))
      before = before.slice(0, -1)
      last = undefined
      return true
    },
    redo() {
      if (!after.length) return false
      before = [...before, now]
      now = /** @type {T} */ (after.at(-1))
      after = after.slice(0, -1)
      last = undefined
      return true
    },
    canUndo: () => before.length > 0,
    canRedo: () => after.length > 0,
  }
}
