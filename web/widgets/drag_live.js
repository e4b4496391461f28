/** A drag as it goes on: the picture, the handles on their way, and how far they still have to go. */

import { addCurves } from "./curves.js"
import { el } from "./dom.js"
import { draw } from "./drag_draw.js"
import { addPanel } from "./panel.js"
import { address, picture } from "./pictures.js"
import { fitted } from "./view.js"

/** @typedef {[number, number]} Place */
/**
 * @typedef {object} Told what the node tells at a step, and what stays of it at the end
 * @property {string | ComfyFile} [image] as a data URL or a file; none: as before
 * @property {Place[]} handles where they are now, in pixels of the picture
 * @property {Place[]} [targets]
 * @property {Place} [size] the picture's [width, height], if the image is a smaller one
 * @property {Place[][]} [tracks] the whole way of each handle
 * @property {number} [step] from 1
 * @property {number} [total]
 * @property {number | number[]} [distance] to the targets: the mean, or each
 */

const BARE = 20
const HEIGHT = 260

/** @param {Browser} browser @param {ComfyNode} node */
export function addDragLive(browser, node) {
  const label = "Drag, as it goes on"
  const panel = addPanel(browser, node, { name: "velatura_drag_live", type: "VELATURA_DRAG_LIVE", label, height: BARE })
  const curves = addCurves(browser, node)
  const hint = el("div", { class: "velatura-hint" }, "While it runs, the picture and its handles move here.")
  const canvas = el("canvas", { role: "img", "aria-label": "The picture and its handles" })
  const board = el("div", { class: "velatura-board", hidden: true }, canvas)
  const says = el("div", { class: "velatura-hint", hidden: true })
  panel.element.append(hint, board, says)
  const layer = el("canvas")

  /** @type {Told} */
  let told = { handles: [] }
  /** @type {HTMLImageElement | null} */
  let shown = null
  /** @type {Place[][]} */
  let tracks = []
  let asked = 0
  let plotted = false // by messages of their own

  function paint() {
    const size = told.size ?? (shown ? /** @type {Place} */ ([shown.naturalWidth, shown.naturalHeight]) : null)
    if (!size) return
    const points = told.handles.map((from, k) => ({ from, to: told.targets?.[k] ?? from }))
    const view = fitted(size, [board.clientWidth, board.clientHeight])
    draw(canvas, { view, size, picture: shown, drawing: { points, mask: [], size }, trails: tracks }, layer)
  }
  const sized = new ResizeObserver(paint)
  sized.observe(board)
  panel.signal.addEventListener("abort", () => sized.disconnect())

  /** @param {Told} next */
  function take(next) {
    const anew = (next.step ?? 0) <= (told.step ?? Infinity)
    told = { ...next, targets: next.targets ?? told.targets, size: next.size ?? told.size }
    tracks = next.tracks ?? told.handles.map((place, k) => [...(anew ? [] : (tracks[k] ?? [])), place])
    hint.hidden = true
    board.hidden = says.hidden = false
    panel.resize(HEIGHT)
    const mean = average(told.distance)
    const step = told.step === undefined ? "" : `step ${told.step}${told.total ? ` / ${told.total}` : ""}`
    says.textContent = [step, mean === null ? "" : `${mean.toFixed(1)} px to go`].filter(Boolean).join(" · ")
    if (next.tracks && told.targets && !plotted) plotAll(next.tracks, told.targets)
    else if (told.step !== undefined && mean !== null && !plotted) plot(anew, told.step)
    paint()
    if (told.image) load(told.image)
  }

  /** The steps that were told are only some of them. @param {Place[][]} ways @param {Place[]} targets */
  function plotAll(ways, targets) {
    const lines = ways.map((way, k) => ({
      name: ways.length > 1 ? `handle ${k + 1}` : "distance",
      points: way.map(([x, y], step) => /** @type {Place} */ ([step, Math.hypot(x - targets[k][0], y - targets[k][1])])),
    }))
    curves.hear("curves", { x: "step", mean: 0, anew: true, lines })
  }

  /** @param {boolean} anew @param {number} step */
  function plot(anew, step) {
    const each = Array.isArray(told.distance) ? told.distance : [told.distance ?? 0]
    const names = each.map((_, k) => (each.length > 1 ? `handle ${k + 1}` : "distance"))
    const lines = each.map((value, k) => ({ name: names[k], points: [/** @type {Place} */ ([step, value])] }))
    curves.hear("curves", { x: "step", mean: 0, anew, lines })
  }

  /** @param {string | ComfyFile} image */
  function load(image) {
    const number = ++asked
    const from = typeof image !== "string" ? address(browser.api, image) : image
    if (!/^(data:image\/|\/(?!\/))/.test(from)) return // nothing from elsewhere
    picture(from).then(
      (ready) => {
        // Steps may come faster than pictures are decoded: an older one is still better than none.
        if (number < shownNumber) return
        shownNumber = number
        shown = ready
        paint()
      },
      () => {},
    )
  }
  let shownNumber = 0

  return {
    /** @param {Record<string, any>} output */
    show(output) {
      const kept = output?.velatura_drag?.[0]
      if (kept) take(kept)
      curves.show(output)
    },
    /** @param {string} event @param {any} data */
    hear(event, data) {
      if (event === "drag") take(data)
      if (event === "curves") {
        plotted = true
        curves.hear(event, data)
      }
    },
  }
}

/** @param {number | number[] | undefined} values */
function average(values) {
  const all = Array.isArray(values) ? values : values === undefined ? [] : [values]
  return all.length ? all.reduce((sum, each) => sum + each, 0) / all.length : null
}
