/** Our part of a node: a DOM widget, in the classic canvas and in Nodes 2.0, that has no value and goes with its node. */

import { el } from "./dom.js"

const MARGIN = 8

/**
 * @typedef {object} Panel
 * @property {HTMLElement} element where the widget builds its own
 * @property {AbortSignal} signal fires when the node is removed: for every listener and timer outside of `element`
 * @property {(height: number) => void} resize the least height, in pixels at zoom 1
 */

/**
 * Put a panel on a node. `type` is the widget's type name, unique among all packs; `label` says what it is.
 * @param {Browser} browser @param {ComfyNode} node
 * @param {{ name: string, type: string, label: string, height: number }} options
 * @returns {Panel}
 */
export function addPanel({ app }, node, { name, type, label, height }) {
  const element = el("div", { class: "velatura-panel", role: "group", "aria-label": label })
  const removed = new AbortController()
  let least = height
  const widget = node.addDOMWidget(name, type, element, {
    serialize: false, // not a part of the prompt
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: () => least + 2 * MARGIN,
    getValue: () => "",
    setValue: () => {},
  })
  widget.serialize = false // nor of the saved workflow, whose values are told apart by their place alone
  chain(node, "onRemoved", () => removed.abort())
  keepWheel(app, element)

  /** @param {number} wanted */
  function resize(wanted) {
    least = wanted
    element.style.minHeight = `${wanted}px`
    node.setDirtyCanvas(true, true)
  }
  resize(height)
  return { element, signal: removed.signal, resize }
}

/**
 * Call `more` after a node's own callback of this name.
 * @param {Record<string, any>} owner @param {string} name @param {(...given: any[]) => void} more
 */
export function chain(owner, name, more) {
  const before = owner[name]
  owner[name] = function (/** @type {any[]} */ ...given) {
    const result = before?.apply(this, given)
    more(...given)
    return result
  }
}

/**
 * The wheel zooms the graph over our elements too.
 * @param {ComfyApp} app @param {HTMLElement} element
 */
function keepWheel(app, element) {
  element.addEventListener("wheel", (event) => {
    event.preventDefault()
    event.stopPropagation()
    app.canvas?.canvas.dispatchEvent(new WheelEvent(event.type, event))
  })
}
