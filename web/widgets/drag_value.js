/** A drawing of arrows and brush strokes, and its text, as core/points.py reads it. Nothing in it is ever changed. */

/** @typedef {[number, number]} Place in pixels of the picture; 0, 0 is the centre of its first pixel */
/** @typedef {{ from: Place, to: Place }} Arrow */
/** @typedef {{ paint: boolean, size: number, path: Place[] }} Stroke */
/** @typedef {{ points: Arrow[], mask: Stroke[], size: Place | null }} Drawing `size` is [width, height] */
/** @typedef {{ arrow: number, end: "from" | "to" }} End */

/** @type {Drawing} */
export const EMPTY = { points: [], mask: [], size: null }

/**
 * A drawing from its text; null if it is none.
 * @param {unknown} text @returns {Drawing | null}
 */
export function parsed(text) {
  if (typeof text !== "string" || !text.trim()) return EMPTY
  /** @type {any} */
  let value
  try {
    value = JSON.parse(text)
  } catch {
    return null
  }
  const points = value?.points
  const mask = value?.mask ?? []
  const size = value?.size ?? null
  const good =
    Array.isArray(points) &&
    points.every((each) => isPlace(each?.from) && isPlace(each?.to)) &&
    Array.isArray(mask) &&
    mask.every((each) => typeof each?.paint === "boolean" && each.size > 0 && each.path?.length && each.path.every(isPlace)) &&
    (size === null || (isPlace(size) && size[0] >= 1 && size[1] >= 1))
  return good ? { points, mask, size } : null
}

/** @param {any} value */
function isPlace(value) {
  return Array.isArray(value) && value.length === 2 && value.every(Number.isFinite)
}

/** @param {Drawing} drawing */
export function written({ points, mask, size }) {
  if (!points.length && !mask.length) return ""
  return JSON.stringify({
    points: points.map(({ from, to }) => ({ from: from.map(round), to: to.map(round) })),
    mask: mask.map(({ paint, size, path }) => ({ paint, size: round(size), path: path.map((place) => place.map(round)) })),
    size,
  })
}

/** @param {number} value */
function round(value) {
  return Math.round(value * 10) / 10
}

/**
 * Whether a picture may be the one that was drawn on, at another size. As core/points.py has it.
 * @param {Place} a @param {Place} b
 */
export function sameShape([width, height], [w, h]) {
  return Math.abs((w * height) / (h * width) - 1) <= 0.01
}

/**
 * The drawing on a picture of another size; edges stay edges.
 * @param {Drawing} drawing @param {Place} size @returns {Drawing}
 */
export function onto(drawing, size) {
  const old = drawing.size
  if (!old || (old[0] === size[0] && old[1] === size[1])) return { ...drawing, size }
  const scale = [size[0] / old[0], size[1] / old[1]]
  const wider = Math.sqrt(scale[0] * scale[1])
  const moved = (/** @type {Place} */ place) =>
    /** @type {Place} */ (place.map((value, k) => (value + 0.5) * scale[k] - 0.5))
  return {
    points: drawing.points.map(({ from, to }) => ({ from: inside(moved(from), size), to: inside(moved(to), size) })),
    mask: drawing.mask.map((stroke) => ({ ...stroke, size: stroke.size * wider, path: stroke.path.map(moved) })),
    size,
  }
}

/**
 * The nearest place on the picture.
 * @param {Place} place @param {Place} size @returns {Place}
 */
export function inside([x, y], [width, height]) {
  return [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)]
}

/** @param {Drawing} drawing @param {Arrow} arrow @returns {Drawing} */
export function withArrow(drawing, arrow) {
  return { ...drawing, points: [...drawing.points, arrow] }
}

/** @param {Drawing} drawing @param {number} number @returns {Drawing} */
export function withoutArrow(drawing, number) {
  return { ...drawing, points: drawing.points.filter((_, k) => k !== number) }
}

/** @param {Drawing} drawing @param {End} at @param {Place} place @returns {Drawing} */
export function withEnd(drawing, { arrow, end }, place) {
  return { ...drawing, points: drawing.points.map((each, k) => (k === arrow ? { ...each, [end]: place } : each)) }
}

/** @param {Drawing} drawing @param {Stroke} stroke @returns {Drawing} */
export function withStroke(drawing, stroke) {
  return { ...drawing, mask: [...drawing.mask, stroke] }
}

/**
 * The end that comes `by` ends after this one: the handle and the target of each arrow in turn.
 * @param {Drawing} drawing @param {End | null} at @param {1 | -1} by @returns {End | null}
 */
export function nextEnd({ points }, at, by) {
  const count = 2 * points.length
  if (!count) return null
  const now = at ? 2 * at.arrow + (at.end === "to" ? 1 : 0) : by > 0 ? -1 : count
  const next = (now + by + count) % count
  return { arrow: next >> 1, end: next % 2 ? "to" : "from" }
}
