import { beforeEach, expect, test, vi } from "vitest"
import { addCompare } from "../../../web/widgets/compare.js"
import { addCurves } from "../../../web/widgets/curves.js"
import { nodeOf, outputOf } from "../../../web/widgets/graph.js"
import { addPanel } from "../../../web/widgets/panel.js"
import { addSchedule } from "../../../web/widgets/schedule.js"
import { browser, node, press } from "./stand_in.js"

beforeEach(() => document.body.replaceChildren())
const find = (selector) => document.querySelector(selector)
const file = (filename) => ({ filename, subfolder: "velatura", type: "temp" })

test("a panel has no value in the prompt or in the file, and a name", () => {
  const made = node({ gain: 4 })
  addPanel(browser(), made, { name: "velatura_x", type: "VELATURA_X", label: "Something", height: 50 })
  const [, widget] = made.widgets
  expect([widget.serialize, widget.options.serialize]).toEqual([false, false])
  expect(find("[role=group]").getAttribute("aria-label")).toBe("Something")
})

test("what a panel listens to ends with its node, and what others put on the node still runs", () => {
  const made = node()
  made.onRemoved = vi.fn()
  const others = made.onRemoved
  const { signal } = addPanel(browser(), made, { name: "x", type: "VELATURA_X", label: "x", height: 50 })
  expect(signal.aborted).toBe(false)
  made.onRemoved()
  expect([signal.aborted, others.mock.calls.length]).toEqual([true, 1])
})

test("the wheel zooms the graph, once, over a panel too", () => {
  const canvas = document.createElement("canvas")
  const [zoomed, page] = [vi.fn(), vi.fn()]
  canvas.addEventListener("wheel", (event) => zoomed(event.deltaY))
  document.body.addEventListener("wheel", page)
  const { element } = addPanel(browser({ canvas: { canvas } }), node(), { name: "x", type: "X", label: "x", height: 9 })
  element.dispatchEvent(new WheelEvent("wheel", { deltaY: -3, bubbles: true, cancelable: true }))
  expect(zoomed.mock.calls).toEqual([[-3]])
  expect(page).not.toHaveBeenCalled()
})

test("one picture is compared with each of several", () => {
  const { show } = addCompare(browser(), node(), "hint")
  show({ images: [] })
  expect(find(".velatura-stage").hidden).toBe(true)
  show({ velatura_compare: [{ a: [file("one")], b: [file("x"), file("y & z")], names: ["before", "after"] }] })
  const sources = () => [...document.images].map((each) => each.getAttribute("src"))
  find("[aria-label='Next pair']").click()
  expect(sources()).toEqual([
    "/api/view?filename=y+%26+z&subfolder=velatura&type=temp",
    "/api/view?filename=one&subfolder=velatura&type=temp",
  ])
  expect(find(".velatura-count").textContent).toBe("2 / 2")
  press(find("[role=slider]"), "Home")
  expect(find("[role=slider]").getAttribute("aria-valuetext")).toBe("0 % before, 100 % after")
})

test("curves grow by what is told, begin anew with a run, and read out the end", () => {
  const { hear, show } = addCurves(browser(), node())
  const told = (anew, points) => ({ x: "step", mean: 0, anew, lines: [{ name: "loss", points }] })
  hear("curves", told(true, [[0, 1], [1, 0.5]]))
  hear("curves", told(false, [[2, 0.25]]))
  expect(find(".velatura-readout").textContent).toBe("step 2loss 0.25")
  press(find("[role=slider]"), "ArrowLeft")
  expect(find("[role=slider]").getAttribute("aria-valuetext")).toBe("step 1, loss 0.5")
  hear("curves", told(false, [[3, 0.1]]))
  expect(find(".velatura-readout").textContent).toBe("step 1loss 0.5") // whoever reads is left where they are
  hear("curves", told(true, [[0, 7]]))
  show({ velatura_curves: [told(true, [[0, 7], [1, 8]])] })
  find("[role=slider]").dispatchEvent(new FocusEvent("blur"))
  expect(find(".velatura-readout").textContent).toBe("step 1loss 8")
})

test("a schedule follows its values, and says what is wrong with them", () => {
  const made = node({ steps: 4, denoise: 1, original_steps: 50, grid: "paper" })
  addSchedule(browser(), made)
  const set = (name, value) => {
    const widget = made.widgets.find((each) => each.name === name)
    widget.value = value
    widget.callback(value)
  }
  set("steps", 2)
  expect(find(".velatura-says").textContent).toMatch(/^t 999 · 499\nσ 14.6 · /)
  set("original_steps", 30)
  expect(find(".velatura-says").textContent).toMatch(/divisor/)
  made.inputs.push({ link: 3, widget: { name: "steps" } })
  set("original_steps", 50)
  expect(find(".velatura-says").textContent).toBe("steps: known when the graph runs")
  made.onRemoved()
})

test("nodes inside of subgraphs are found by the server's names for them", () => {
  const inner = { id: 3 }
  const host = { id: 5, subgraph: { getNodeById: (id) => (id === "3" ? inner : null) } }
  const graph = { id: "root", getNodeById: (id) => (id === "5" ? host : null) }
  expect(nodeOf({ graph }, "5:3")).toBe(inner)
  expect(nodeOf({ graph }, "5")).toBe(host)
  expect(nodeOf({ graph }, "6:3")).toBe(null)
  const nodeOutputs = { 5: "outer", "abc:3": "inner" }
  expect(outputOf({ graph, nodeOutputs }, { id: 3, graph: { id: "abc" } })).toBe("inner")
  expect(outputOf({ graph, nodeOutputs }, { id: 5, graph })).toBe("outer")
})
