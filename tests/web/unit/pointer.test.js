import { beforeEach, expect, test, vi } from "vitest"
import { drag, placeOn, slider } from "../../../web/widgets/pointer.js"
import { press } from "./stand_in.js"

let element
beforeEach(() => {
  element = document.createElement("div")
  document.body.replaceChildren(element)
  // Zoomed: 200 pixels of the screen, whatever its own size is.
  element.getBoundingClientRect = () => ({ left: 100, top: 50, width: 200, height: 100 })
})

function point(name, clientX, more = {}) {
  element.dispatchEvent(new PointerEvent(name, { clientX, clientY: 75, pointerId: 1, bubbles: true, ...more }))
}

test("a place is a share of the element, and stays on it", () => {
  expect(placeOn({ clientX: 150, clientY: 125 }, element)).toEqual({ x: 0.25, y: 0.75 })
  expect(placeOn({ clientX: 0, clientY: 900 }, element)).toEqual({ x: 0, y: 1 })
})

test("a drag follows its own pointer from press to release, hidden from the graph below", () => {
  const [moved, ended, graph] = [vi.fn(), vi.fn(), vi.fn()]
  drag(element, (at) => moved(at.x), ended)
  for (const name of ["pointerdown", "pointermove", "pointerup"]) document.body.addEventListener(name, graph)
  point("pointermove", 120)
  point("pointerdown", 150)
  expect(graph).toHaveBeenCalledTimes(1) // a move that is no drag is nobody's
  point("pointerdown", 250, { pointerId: 2 }) // a second finger
  point("pointermove", 250, { pointerId: 2 })
  point("pointermove", 200)
  point("pointerup", 200)
  point("pointermove", 300)
  expect(moved.mock.calls).toEqual([[0.25], [0.5]])
  expect(ended).toHaveBeenCalledTimes(1)
})

test("the right button, which opens the menu, does not drag", () => {
  const moved = vi.fn()
  drag(element, moved)
  point("pointerdown", 150, { button: 2 })
  expect(moved).not.toHaveBeenCalled()
})

test("a slider is moved by keys within its ends, and says where it is", () => {
  const changed = vi.fn()
  const [outside, other] = [vi.fn(), vi.fn()]
  document.body.addEventListener("keydown", (event) => (event.key === "a" ? other() : outside()))
  const made = slider(element, {
    label: "Frame", high: 20, step: 1, page: 5, text: (value) => `frame ${value + 1}`, changed,
  })
  expect([element.getAttribute("role"), element.tabIndex]).toEqual(["slider", 0])
  const seen = []
  for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "PageUp", "ArrowDown", "PageDown", "End", "ArrowRight", "Home"]) {
    press(element, key)
    seen.push(made.value())
  }
  expect(seen).toEqual([0, 1, 2, 7, 6, 1, 20, 20, 0])
  press(element, "a")
  expect([outside.mock.calls.length, other.mock.calls.length]).toEqual([0, 1])
  made.set(4)
  expect(element.getAttribute("aria-valuetext")).toBe("frame 5")
  expect(element.getAttribute("aria-valuenow")).toBe("4")
  made.reach(2)
  expect([made.value(), element.getAttribute("aria-valuemax")]).toEqual([2, "2"])
})

test("a slider goes where it is pressed", () => {
  const made = slider(element, { label: "Divider", high: 1, step: 0.01, text: String, changed: () => {} })
  point("pointerdown", 250)
  expect(made.value()).toBeCloseTo(0.75)
  expect(document.activeElement).toBe(element)
})
