/** Two pictures, one over the other, with a divider to drag between them. */

import { button, el } from "./dom.js"
import { addPanel } from "./panel.js"
import { address } from "./pictures.js"
import { slider } from "./pointer.js"

const EMPTY = 20
const HEIGHT = 220
const HEIGHT_OF_ROW = 26

/**
 * @param {Browser} browser @param {ComfyNode} node @param {string} hint what to do to see pictures here
 */
export function addCompare(browser, node, hint) {
  const label = "Compare two pictures"
  const panel = addPanel(browser, node, { name: "velatura_compare", type: "VELATURA_COMPARE", label, height: EMPTY })
  const under = el("img", { alt: "", draggable: false })
  const over = el("img", { alt: "", draggable: false, class: "velatura-over" })
  const names = [el("span", { class: "velatura-name" }), el("span", { class: "velatura-name velatura-right" })]
  const frame = el("div", { class: "velatura-frame velatura-sideways" }, under, over, ...names)
  frame.append(el("div", { class: "velatura-divider" }))
  const stage = el("div", { class: "velatura-stage", hidden: true }, frame)
  const count = el("span", { class: "velatura-count", "aria-live": "polite" })
  const row = el("div", { class: "velatura-row", hidden: true })
  row.append(button("‹", "Previous pair", () => turn(-1)), count, button("›", "Next pair", () => turn(1)))
  const empty = el("div", { class: "velatura-hint" }, hint)
  panel.element.append(empty, stage, row)

  /** @type {{ a: ComfyFile[], b: ComfyFile[], names: string[] }} */
  let shown = { a: [], b: [], names: ["A", "B"] }
  let pair = 0
  const divider = slider(frame, {
    label: "Divider",
    high: 1,
    step: 0.01,
    value: 0.5,
    text: (at) => `${Math.round(at * 100)} % ${shown.names[0]}, ${Math.round(100 - at * 100)} % ${shown.names[1]}`,
    changed: (at) => frame.style.setProperty("--at", `${at * 100}%`),
  })
  over.addEventListener("load", () => {
    frame.style.setProperty("--ratio", String(over.naturalWidth / (over.naturalHeight || 1)))
  })

  const pairs = () => Math.max(shown.a.length, shown.b.length)

  /** @param {number} by */
  function turn(by) {
    pair = (pair + by + pairs()) % pairs()
    draw()
  }

  function draw() {
    // One picture may stand beside many.
    over.src = address(browser.api, shown.a[Math.min(pair, shown.a.length - 1)])
    under.src = address(browser.api, shown.b[Math.min(pair, shown.b.length - 1)])
    over.alt = shown.names[0]
    under.alt = shown.names[1]
    names.forEach((name, side) => (name.textContent = shown.names[side]))
    count.textContent = `${pair + 1} / ${pairs()}`
  }

  return {
    /** @param {Record<string, any>} output */
    show(output) {
      const given = output?.velatura_compare?.[0]
      if (!given?.a?.length || !given.b?.length) return
      shown = given
      pair = Math.min(pair, pairs() - 1)
      empty.hidden = true
      stage.hidden = false
      row.hidden = pairs() < 2
      panel.resize(HEIGHT + (row.hidden ? 0 : HEIGHT_OF_ROW))
      divider.set(divider.value())
      draw()
    },
  }
}
