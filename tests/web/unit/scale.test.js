import { expect, test } from "vitest"
import { nearest, runningMean, scaleOf, written } from "../../../web/widgets/scale.js"

test("a logarithmic scale keeps every value between its ends, and its ticks on it", () => {
  for (const values of [[1e-5, 3, 0.02], [0.11, 0.13], [5], [1e-30, 1e9], [0, 0.5], []]) {
    const { ticks, share } = scaleOf(values, true)
    for (const value of values.filter((each) => each > 0)) {
      expect(share(value)).toBeGreaterThanOrEqual(0)
      expect(share(value)).toBeLessThanOrEqual(1)
    }
    expect(ticks.every((tick) => share(tick) >= 0 && share(tick) <= 1)).toBe(true)
    expect(ticks.length).toBeLessThan(12)
  }
  expect(scaleOf([1, 100], true).share(10)).toBeCloseTo(0.5)
})

test("a linear scale goes from zero to a round number that holds the largest value", () => {
  const { ticks, share } = scaleOf([0.3, 0.87], false)
  expect(ticks).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1])
  expect(share(0)).toBe(0)
  expect(share(0.5)).toBeCloseTo(0.5)
  expect(scaleOf([], false).ticks.every(Number.isFinite)).toBe(true)
})

test("a running mean is over the last values alone", () => {
  const points = [4, 2, 6, 0].map((y, x) => [x, y])
  expect(runningMean(points, 2).map(([, y]) => y)).toEqual([4, 3, 4, 3])
})

test("the nearest point is found at the ends, on points and between them", () => {
  const points = [0, 10, 20, 21].map((x) => [x, 0])
  expect([-5, 0, 4, 6, 20.4, 20.6, 99].map((x) => nearest(points, x))).toEqual([0, 0, 0, 1, 2, 3, 3])
  expect(nearest([], 3)).toBe(0)
})

test("numbers are short", () => {
  expect([0, 0.01234, 14.614, 2500, 0.00001234, 1234567].map(written)).toEqual([
    "0", "0.0123", "14.6", "2500", "1.2e-5", "1.2e6",
  ])
})
