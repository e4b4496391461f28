import { beforeEach, expect, test, vi } from "vitest"
import { addDragLive } from "../../../web/widgets/drag_live.js"
import { fileOf, loadedAbove } from "../../../web/widgets/drag_source.js"
import { EMPTY, inside, nextEnd, onto, parsed, sameShape, withArrow, withEnd, withoutArrow, withStroke, written } from "../../../web/widgets/drag_value.js"
import { historyOf } from "../../../web/widgets/history.js"
import { arrowAt, endAt, fitted, moved, placeAt, spotOf, zoomed } from "../../../web/widgets/view.js"
import { browser, node } from "./stand_in.js"

beforeEach(() => document.body.replaceChildren())
const arrow = (...numbers) => ({ from: numbers.slice(0, 2), to: numbers.slice(2) })

test("a drawing and its text are the same thing", () => {
  const drawing = { points: [arrow(1, 2, 3.5, 4)], mask: [{ paint: false, size: 9, path: [[1, 1], [2, 5]] }], size: [64, 48] }
  expect(parsed(written(drawing))).toEqual(drawing)
  expect(written({ ...drawing, points: [arrow(1 / 3, 2, 3, 4)], mask: [] })).toBe(
    '{"points":[{"from":[0.3,2],"to":[3,4]}],"mask":[],"size":[64,48]}',
  )
  expect([written(EMPTY), parsed(""), parsed(undefined)]).toEqual(["", EMPTY, EMPTY])
  expect(parsed('{"points": []}')).toEqual(EMPTY)
})

test("what is no drawing is none", () => {
  for (const text of [
    "{", "[]", "null", "3", '{"points": {}}', '{"points": [{"from": [1, 2]}]}', '{"points": [{"from": [1, 2], "to": [1, "2"]}]}',
    '{"points": [], "mask": [{"paint": 1, "size": 2, "path": [[1, 1]]}]}', '{"points": [], "mask": [{"paint": true, "size": 2, "path": []}]}',
    '{"points": [], "size": [0, 5]}', '{"points": [null]}', '{"points": [], "mask": [null]}',
  ]) expect(parsed(text), text).toBe(null)
})

test("changes make new drawings and leave the old ones", () => {
  const one = withArrow(EMPTY, arrow(0, 0, 1, 1))
  const two = withArrow(one, arrow(2, 2, 3, 3))
  expect(withEnd(two, { arrow: 1, end: "to" }, [9, 9]).points).toEqual([arrow(0, 0, 1, 1), arrow(2, 2, 9, 9)])
  expect(withoutArrow(two, 0).points).toEqual([arrow(2, 2, 3, 3)])
  expect(withStroke(two, { paint: true, size: 1, path: [[0, 0]] }).mask).toHaveLength(1)
  expect([EMPTY.points.length, one.points.length, two.points.length, two.mask.length]).toEqual([0, 1, 2, 0])
})

test("on another size of the picture everything lies where it lay, and on it", () => {
  const drawing = { points: [arrow(0, 0, 9, 9)], mask: [{ paint: true, size: 4, path: [[-0.5, 4.5]] }], size: [10, 10] }
  const large = onto(drawing, [40, 40])
  expect(large.points[0]).toEqual(arrow(1.5, 1.5, 37.5, 37.5)) // the centres of the corners' pixels
  expect(large.mask[0]).toEqual({ paint: true, size: 16, path: [[-0.5, 19.5]] })
  expect(onto(drawing, [5, 5]).points[0]).toEqual(arrow(0, 0, 4, 4))
  expect(onto({ ...drawing, size: null }, [40, 40]).points).toEqual(drawing.points)
  expect([sameShape([1024, 683], [768, 512]), sameShape([64, 64], [64, 60])]).toEqual([true, false])
  expect(inside([-3, 99], [10, 20])).toEqual([0, 19])
})

test("ends follow each other around", () => {
  const drawing = { ...EMPTY, points: [arrow(0, 0, 1, 1), arrow(2, 2, 3, 3)] }
  const seen = []
  for (let at = nextEnd(drawing, null, 1), k = 0; k < 5; k++, at = nextEnd(drawing, at, 1)) seen.push(`${at.arrow} ${at.end}`)
  expect(seen).toEqual(["0 from", "0 to", "1 from", "1 to", "0 from"])
  expect(nextEnd(drawing, null, -1)).toEqual({ arrow: 1, end: "to" })
  expect(nextEnd(EMPTY, null, 1)).toBe(null)
})

test("history goes back and forth, and what is new ends the way forth", () => {
  const history = historyOf(0)
  expect([history.undo(), history.redo(), history.value()]).toEqual([false, false, 0])
  for (const value of [1, 2, 3]) history.set(value)
  history.undo()
  history.undo()
  expect([history.value(), history.canRedo()]).toEqual([1, true])
  history.redo()
  expect(history.value()).toBe(2)
  history.set(9)
  expect([history.value(), history.redo(), history.canRedo()]).toEqual([9, false, false])
})

test("small changes of one thing are one step", () => {
  const history = historyOf("start")
  history.set("a", "x")
  history.set("b", "x")
  history.set("c", "y")
  history.undo()
  expect(history.value()).toBe("b")
  history.set("d", "x") // after an undo it is a new one
  history.undo()
  expect(history.value()).toBe("b")
  history.undo()
  expect(history.value()).toBe("start")
})

test("history has an end", () => {
  const history = historyOf(0)
  for (let value = 1; value < 1000; value++) history.set(value)
  let steps = 0
  while (history.undo()) steps++
  expect(steps).toBe(200)
})

test("a picture fits its stage, and places and spots are each other's", () => {
  const view = fitted([100, 50], [300, 300])
  expect(view).toEqual({ scale: 3, x: 0, y: 75 })
  expect(spotOf(view, [0, 0])).toEqual({ x: 1.5, y: 76.5 })
  const place = placeAt(view, spotOf(view, [12.3, 45.6]))
  expect(place[0]).toBeCloseTo(12.3)
  expect(place[1]).toBeCloseTo(45.6)
})

test("zooming keeps what is under the pointer there, up to an end", () => {
  const spot = { x: 120, y: 30 }
  let view = fitted([100, 50], [300, 300])
  const before = placeAt(view, spot)
  for (let k = 0; k < 50; k++) {
    view = zoomed(view, 1.3, spot)
    placeAt(view, spot).forEach((value, axis) => expect(value).toBeCloseTo(before[axis]))
  }
  expect(view.scale).toBe(32)
  for (let k = 0; k < 50; k++) view = zoomed(view, 0.7, spot)
  expect(view.scale).toBe(0.1)
})

test("a picture cannot be moved out of sight", () => {
  const view = fitted([100, 50], [300, 300])
  const [left, right] = [moved(view, -9999, -9999, [100, 50], [300, 300]), moved(view, 9999, 9999, [100, 50], [300, 300])]
  expect([left.x + 300, left.y + 150]).toEqual([24, 24])
  expect([right.x, right.y]).toEqual([276, 276])
})

test("the nearest end is taken, of two in one place the later", () => {
  const view = { scale: 1, x: 0, y: 0 }
  const arrows = [arrow(10, 10, 50, 10), arrow(10, 16, 50, 10)]
  expect(endAt(arrows, view, { x: 10.5, y: 12 }, 10)).toEqual({ arrow: 0, end: "from" })
  expect(endAt(arrows, view, { x: 10.5, y: 15 }, 10)).toEqual({ arrow: 1, end: "from" })
  expect(endAt(arrows, view, { x: 51, y: 12 }, 10)).toEqual({ arrow: 1, end: "to" })
  expect(endAt(arrows, view, { x: 30, y: 10 }, 10)).toBe(null)
  expect(arrowAt(arrows, view, { x: 30, y: 9 }, 10)).toBe(0)
  expect(arrowAt(arrows, view, { x: 30, y: 40 }, 10)).toBe(-1)
})

test("Load Image's names for files", () => {
  expect(fileOf("a/b/c.png")).toEqual({ filename: "c.png", subfolder: "a/b", type: "input" })
  expect(fileOf("x y.png [output]")).toEqual({ filename: "x y.png", subfolder: "", type: "output" })
  const load = { comfyClass: "LoadImage", widgets: [{ name: "image", value: "a/b.png" }] }
  const above = (origin) => ({ ...node(), graph: { id: "root" }, inputs: [{ name: "mask", link: null }, { name: "image", link: 1 }], getInputNode: (k) => (k ? origin : null) })
  expect(loadedAbove(browser(), above(load), "image")).toBe("/api/view?filename=b.png&subfolder=a&type=input")
  expect(loadedAbove(browser(), above({ comfyClass: "VAEDecode" }), "image")).toBe(null)
  expect(loadedAbove(browser(), above(null), "image")).toBe(null)
  expect(loadedAbove(browser(), node(), "image")).toBe(null)
  const fresh = { ...above(load), graph: null, getInputNode: () => { throw new Error("no graph") } }
  expect(loadedAbove(browser(), fresh, "image")).toBe(null)
})

test("a drag that goes on is told in words, plotted, and begun anew by the next run", () => {
  Image.prototype.decode = vi.fn(async () => {})
  const { hear, show } = addDragLive(browser(), node())
  const step = (k, distance) => ({ image: "data:image/png;base64,AA", handles: [[k, 0]], targets: [[9, 0]], step: k, total: 3, distance })
  hear("drag", step(1, 8))
  hear("drag", step(2, 4))
  const says = () => [...document.querySelectorAll(".velatura-hint")].map((each) => each.textContent).join("|")
  expect(says()).toContain("step 2 / 3 · 4.0 px to go")
  expect(document.querySelector(".velatura-readout").textContent).toBe("step 2distance 4")
  hear("drag", step(1, 9))
  expect(document.querySelector("[role=slider]").getAttribute("aria-valuemax")).toBe("0")
  hear("drag", { ...step(2, [3, 5]), image: undefined })
  expect(says()).toContain("4.0 px to go")
  show({ velatura_drag: [{ handles: [[9, 0]], targets: [[9, 0]], tracks: [[[3, 4], [6, 0], [9, 0]]], step: 3, distance: 0 }] })
  expect(document.querySelector(".velatura-readout").textContent).toBe("step 2distance 0")
  expect(document.querySelector("[role=slider]").getAttribute("aria-valuemax")).toBe("2")
  show({ velatura_drag: [{ handles: [[9, 0]], distance: 0.5 }], velatura_curves: [{ x: "step", mean: 0, anew: true, lines: [{ name: "mean", points: [[1, 8], [2, 0.5]] }] }] })
  expect(document.querySelector(".velatura-readout").textContent).toBe("step 2mean 0.5")
})

test("only pictures are loaded", () => {
  const loaded = vi.fn(async () => {})
  Image.prototype.decode = loaded
  const { hear } = addDragLive(browser(), node())
  for (const image of ["https://elsewhere.example/x.png", "//elsewhere.example/x.png", "javascript:alert(1)", "data:text/html,x"]) hear("drag", { image, handles: [] })
  expect(loaded).not.toHaveBeenCalled()
  hear("drag", { image: { filename: "a.png", subfolder: "", type: "temp" }, handles: [] })
  expect(loaded).toHaveBeenCalledTimes(1)
})
