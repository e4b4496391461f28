/** How a picture lies on its stage: moved, enlarged, and what is where. */

/** @typedef {[number, number]} Place in pixels of the picture; 0, 0 is the centre of its first pixel */
/** @typedef {{ x: number, y: number }} Spot in the stage's own pixels */
/** @typedef {{ scale: number, x: number, y: number }} View `x`, `y`: where the picture's upper left corner is */

const MOST = 32
const LEAST = 0.1
const MARGIN = 24

/**
 * All of the picture, as large as fits, in the middle.
 * @param {Place} size @param {Place} stage both [width, height] @returns {View}
 */
export function fitted([width, height], [across, down]) {
  const scale = Math.min(across / width, down / height) || 1
  return { scale, x: (across - scale * width) / 2, y: (down - scale * height) / 2 }
}

/**
 * Enlarged by a factor around a spot, which stays where it is.
 * @param {View} view @param {number} factor @param {Spot} spot @returns {View}
 */
export function zoomed(view, factor, { x, y }) {
  const scale = Math.min(Math.max(view.scale * factor, LEAST), Math.max(MOST, view.scale))
  const by = scale / view.scale
  return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by }
}

/**
 * Moved, but never out of sight.
 * @param {View} view @param {number} dx @param {number} dy @param {Place} size @param {Place} stage @returns {View}
 */
export function moved({ scale, x, y }, dx, dy, [width, height], [across, down]) {
  const least = (/** @type {number} */ pixels) => MARGIN - scale * pixels
  return {
    scale,
    x: Math.min(Math.max(x + dx, least(width)), across - MARGIN),
    y: Math.min(Math.max(y + dy, least(height)), down - MARGIN),
  }
}

/** @param {View} view @param {Place} place @returns {Spot} */
export function spotOf({ scale, x, y }, [px, py]) {
  return { x: x + scale * (px + 0.5), y: y + scale * (py + 0.5) }
}

/** @param {View} view @param {Spot} spot @returns {Place} */
export function placeAt({ scale, x, y }, spot) {
  return [(spot.x - x) / scale - 0.5, (spot.y - y) / scale - 0.5]
}

/** @param {Spot} a @param {Spot} b */
export function distance(a, b) {
  return Math.hypot(a.x - b.x, a.y - b.y)
}

/** @typedef {{ from: Place, to: Place }} Arrow */

/**
 * The end of an arrow at a spot: the nearest within reach; of two that lie together the target, and of those the last.
 * @param {Arrow[]} arrows @param {View} view @param {Spot} spot @param {number} reach
 * @returns {{ arrow: number, end: "from" | "to" } | null}
 */
export function endAt(arrows, view, spot, reach) {
  /** @type {{ arrow: number, end: "from" | "to" } | null} */
  let found = null
  let least = reach
  arrows.forEach((each, arrow) => {
    for (const end of /** @type {const} */ (["from", "to"])) {
      const far = distance(spotOf(view, each[end]), spot)
      if (far <= least) [least, found] = [far, { arrow, end }]
    }
  })
  return found
}

/**
 * The arrow at a spot, its line included; -1 if there is none.
 * @param {Arrow[]} arrows @param {View} view @param {Spot} spot @param {number} reach
 */
export function arrowAt(arrows, view, spot, reach) {
  const end = endAt(arrows, view, spot, reach)
  if (end) return end.arrow
  return arrows.findIndex(({ from, to }) => distanceToLine(spotOf(view, from), spotOf(view, to), spot) <= reach / 2)
}

/** @param {Spot} a @param {Spot} b @param {Spot} spot */
export function distanceToLine(a, b, spot) {
  const [dx, dy] = [b.x - a.x, b.y - a.y]
  const along = ((spot.x - a.x) * dx + (spot.y - a.y) * dy) / (dx * dx + dy * dy || 1)
  const share = Math.min(Math.max(along, 0), 1)
  return distance({ x: a.x + share * dx, y: a.y + share * dy }, spot)
}
