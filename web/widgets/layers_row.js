/** A layer's line in the list. */

import { button, el, svg } from "./dom.js"
import { slider } from "./pointer.js"

/**
 * @typedef {object} Actions
 * @property {() => void} choose
 * @property {() => void} eye
 * @property {() => void} solo
 * @property {() => void} up
 * @property {() => void} down
 * @property {(value: number) => void} opacity
 * @property {boolean} owned whether a node of the graph has its values
 */

/** Drawn: not every system has a letter for it. */
const EYE = () =>
  svg(
    "svg",
    { class: "velatura-eye", viewBox: "0 0 14 14", "aria-hidden": "true" },
    svg("path", { d: "M1 7C4 2.5 10 2.5 13 7C10 11.5 4 11.5 1 7Z" }),
    svg("circle", { cx: 7, cy: 7, r: 1.8 }),
  )

/** @param {Actions} actions */
export function addRow({ choose, eye, solo, up, down, opacity, owned }) {
  const eyes = button("", "Visible", eye)
  eyes.append(EYE())
  const alone = button("S", "Solo", solo)
  const name = button("", "Choose", choose)
  name.classList.add("velatura-layer")
  const track = el("div", { class: "velatura-track velatura-sideways" }, el("div", { class: "velatura-thumb" }))
  const percent = el("span", { class: "velatura-number" })
  const [higher, lower] = [button("▲", "Up", up), button("▼", "Down", down)]
  const element = el("div", { class: "velatura-row" }, eyes, alone, name, track, percent, higher, lower)
  let shown = false
  const share = slider(track, {
    label: "Opacity",
    high: 1,
    step: 0.01,
    page: 0.1,
    value: 1,
    text: (value) => `${Math.round(100 * value)} %`,
    changed(value) {
      track.style.setProperty("--at", `${100 * value}%`)
      percent.textContent = `${Math.round(100 * value)} %`
      if (shown) opacity(Math.round(100 * value) / 100)
    },
  })
  if (!owned) {
    // It came out of a node that makes its own layers.
    track.classList.add("velatura-fixed")
    track.setAttribute("aria-disabled", "true")
    track.tabIndex = -1
  }

  return {
    element,
    /**
     * @param {{ name: string, opacity: number, blend: string }} layer
     * @param {{ visible: boolean, solo: boolean, chosen: boolean, up: boolean, down: boolean }} state
     */
    show(layer, state) {
      name.textContent = layer.name
      name.title = `${layer.name} (${layer.blend})`
      name.setAttribute("aria-label", `Layer ${layer.name}`)
      track.setAttribute("aria-label", `Opacity of ${layer.name}`)
      for (const [each, on] of /** @type {const} */ ([[eyes, state.visible], [alone, state.solo], [name, state.chosen]])) {
        each.setAttribute("aria-pressed", String(on))
      }
      higher.disabled = !state.up
      lower.disabled = !state.down
      shown = false
      if (Math.abs(share.value() - layer.opacity) > 0.004) share.set(layer.opacity)
      shown = owned
    },
  }
}
