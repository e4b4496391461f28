/** From values to places on a chart. */

/**
 * @typedef {object} Scale
 * @property {number[]} ticks values to label
 * @property {(value: number) => number} share where a value is, 0 at the bottom, 1 at the top
 */

/** @typedef {[number, number]} Point a step, and the value there */

/**
 * A scale that holds all values: logarithmic, or from zero. Values that a logarithm does not know lie on the ground.
 * @param {number[]} values @param {boolean} logarithmic @returns {Scale}
 */
export function scaleOf(values, logarithmic) {
  const known = values.filter((value) => Number.isFinite(value) && (!logarithmic || value > 0))
  return logarithmic ? byRatio(known) : fromZero(known)
}

/** @param {number[]} values @returns {Scale} */
function fromZero(values) {
  const top = largest(values) || 1
  const power = 10 ** Math.floor(Math.log10(top / 4))
  const unit = power * ([1, 2, 2.5, 5, 10].find((digit) => power * digit * 5 >= top) ?? 10)
  const count = Math.ceil(top / unit - 1e-9)
  return {
    ticks: Array.from({ length: count + 1 }, (_, k) => Number((unit * k).toPrecision(12))),
    share: (value) => Math.max(0, value) / (unit * count),
  }
}

/** @param {number[]} values @returns {Scale} */
function byRatio(values) {
  const high = largest(values) || 1
  // More than eight powers of ten would leave nothing to see of each.
  const low = Math.max(smallest(values, high), high / 1e8)
  const [from, to] = [Math.log10(low) - 0.05, Math.log10(high) + 0.05]
  const powers = Array.from({ length: Math.ceil(to) - Math.floor(from) + 1 }, (_, k) => Math.floor(from) + k)
  const digits = to - from < 1 ? [1, 2, 3, 5, 7] : to - from < 2.5 ? [1, 2, 5] : [1]
  const every = to - from > 5 ? 2 : 1
  const ticks = powers
    .filter((power) => power % every === 0)
    .flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)))
    .filter((tick) => Math.log10(tick) >= from && Math.log10(tick) <= to)
  return { ticks, share: (value) => (Math.log10(Math.max(value, 10 ** from)) - from) / (to - from) }
}

/** @param {number[]} values */
function largest(values) {
  return values.reduce((most, value) => Math.max(most, value), 0)
}

/** @param {number[]} values @param {number} start */
function smallest(values, start) {
  return values.reduce((least, value) => Math.min(least, value), start)
}

/**
 * The mean of the last `width` values at each point.
 * @param {Point[]} points @param {number} width @returns {Point[]}
 */
export function runningMean(points, width) {
  let sum = 0
  return points.map(([x, y], k) => {
    sum += y - (k >= width ? points[k - width][1] : 0)
    return [x, sum / Math.min(k + 1, width)]
  })
}

/**
 * The number of the point that is nearest to `x`.
 * @param {Point[]} points rising @param {number} x
 */
export function nearest(points, x) {
  let [low, high] = [0, points.length - 1]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (points[middle][0] < x) low = middle
    else high = middle
  }
  return low < high && Math.abs(points[high][0] - x) < Math.abs(points[low][0] - x) ? high : low
}

/**
 * A number as people write it, to three digits.
 * @param {number} value
 */
export function written(value) {
  if (value === 0) return "0"
  const size = Math.abs(value)
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(3)))
}
