/** The drag editor: arrows and a mask on the node's picture, kept as text in the node's `drag` value. */

import { button, el } from "./dom.js"
import { addBoard } from "./drag_board.js"
import { loadedAbove } from "./drag_source.js"
import { EMPTY, onto, parsed, sameShape, written } from "./drag_value.js"
import { historyOf } from "./history.js"
import { addPanel, chain } from "./panel.js"
import { address, picture } from "./pictures.js"
import { slider } from "./pointer.js"

/** @typedef {import("./drag_value.js").Drawing} Drawing */
/** @typedef {import("./drag_value.js").Place} Place */

const BARE = 20
const HEIGHT = 360
const HINT = "Connect Load Image to draw on its picture at once; any other picture is here after a run."
const TOOLS = /** @type {const} */ ([
  ["arrows", "Arrows", "Arrows: drag from a handle to its target; right click removes (P)"],
  ["brush", "Brush", "Brush: paint what may move (B)"],
  ["erase", "Erase", "Erase what was painted (E)"],
])

/** @param {Browser} browser @param {ComfyNode} node */
export function addDrag(browser, node) {
  const panel = addPanel(browser, node, { name: "velatura_drag", type: "VELATURA_DRAG", label: "Drag editor", height: BARE })
  const value = node.widgets?.find((each) => each.name === "drag")
  /** @type {import("./history.js").History<Drawing>} */
  let history = historyOf(EMPTY)
  let text = ""
  let readable = true
  /** @type {HTMLImageElement | null} */
  let shown = null
  let from = ""
  /** The node's own picture, of its last run. */
  let ran = ""

  /** @type {import("./drag_board.js").Editor} */
  const editor = {
    drawing: fittedDrawing,
    size: () => (shown ? [shown.naturalWidth, shown.naturalHeight] : history.value().size),
    picture: () => shown,
    change(next, merge) {
      history.set(next, merge)
      save()
    },
    tell: update,
    keys: {
      p: () => use("arrows"),
      b: () => use("brush"),
      e: () => use("erase"),
      "[": () => brush.set(brush.value() - 0.05),
      "]": () => brush.set(brush.value() + 0.05),
      "Ctrl+z": () => history.undo() && save(),
      "Ctrl+Shift+z": () => history.redo() && save(),
      "Ctrl+y": () => history.redo() && save(),
    },
    tool: "arrows",
    brush: 32,
    selected: null,
  }
  const board = addBoard(editor, panel.signal)
  const tools = TOOLS.map(([tool, sign, name]) => button(sign, name, () => use(tool)))
  const undo = button("↶", "Undo (Ctrl+Z)", () => history.undo() && save())
  const redo = button("↷", "Redo (Ctrl+Shift+Z)", () => history.redo() && save())
  const clear = button("Clear", "Clear all arrows and the mask", () => {
    editor.selected = null
    editor.change({ ...EMPTY })
  })
  const track = el("div", { class: "velatura-track velatura-sideways" }, el("div", { class: "velatura-thumb" }))
  const width = el("span", { class: "velatura-number" })
  const brush = slider(track, {
    label: "Brush size",
    high: 1,
    step: 0.01,
    page: 0.1,
    value: 0.4,
    text: (at) => `${brushAt(at)} pixels`,
    changed(at) {
      editor.brush = brushAt(at)
      track.style.setProperty("--at", `${100 * at}%`)
      width.textContent = `${editor.brush} px`
      board.show()
    },
  })
  const says = el("div", { class: "velatura-hint", "aria-live": "polite" })
  const hint = el("div", { class: "velatura-hint" }, HINT)
  const rows = [
    el("div", { class: "velatura-row" }, ...tools, track, width),
    board.element,
    el("div", { class: "velatura-row" }, undo, redo),
    says,
  ]
  rows[2].append(button("−", "Smaller (-)", () => board.zoom(0.8)), button("+", "Larger (+)", () => board.zoom(1.25)))
  rows[2].append(button("Fit", "Fit all of the picture (0)", board.fit), clear)
  panel.element.append(hint, ...rows)

  /** The size by the slider's place: by ratio, from 2 pixels to half of the picture. @param {number} at */
  function brushAt(at) {
    const most = Math.max(8, ...(editor.size() ?? [512]).map((side) => side / 2))
    return Math.round(2 * (most / 2) ** at)
  }

  /** @type {{ of: Drawing | null, size: string, drawing: Drawing }} */
  let fitted = { of: null, size: "", drawing: EMPTY }

  /** What is drawn, on the picture that is there: one of another size shows it where it will lie. */
  function fittedDrawing() {
    const [of, size] = [history.value(), editor.size()]
    if (!size) return of
    if (fitted.of !== of || fitted.size !== `${size}`) fitted = { of, size: `${size}`, drawing: onto(of, size) }
    return fitted.drawing
  }

  /** @param {"arrows" | "brush" | "erase"} tool */
  function use(tool) {
    editor.tool = tool
    editor.selected = null
    update()
  }

  function save() {
    text = written(history.value())
    readable = true
    if (value) {
      // So that the graph's own undo, and the draft, have it.
      browser.app.canvas?.emitBeforeChange?.()
      value.value = text
      value.callback?.(text)
      browser.app.canvas?.emitAfterChange?.()
    }
    update()
  }

  function update() {
    const size = editor.size()
    hint.hidden = !!size
    for (const row of rows) row.hidden = !size
    panel.resize(size ? HEIGHT : BARE)
    const { points, mask, size: drawnOn } = history.value()
    if (editor.selected && editor.selected.arrow >= points.length) editor.selected = null
    tools.forEach((each, k) => each.setAttribute("aria-pressed", String(TOOLS[k][0] === editor.tool)))
    undo.disabled = !history.canUndo()
    redo.disabled = !history.canRedo()
    clear.disabled = !points.length && !mask.length
    const other = shown && drawnOn && size && !sameShape(drawnOn, size)
    says.classList.toggle("velatura-wrong", !readable || !!other)
    says.textContent = !readable
      ? "The text in “drag” is no drawing."
      : other
        ? `Drawn on a picture of ${drawnOn.join("×")}: the next change fits it to this one.`
        : summary(points.length, mask.length > 0)
    says.title = says.textContent
    board.show()
  }

  /** @param {number} arrows @param {boolean} painted */
  function summary(arrows, painted) {
    const { selected } = editor
    if (selected) {
      const place = fittedDrawing().points[selected.arrow][selected.end].map(Math.round)
      return `${selected.end === "from" ? "handle" : "target"} ${selected.arrow + 1} of ${arrows}: ${place.join(", ")}`
    }
    return `${arrows} ${arrows === 1 ? "arrow" : "arrows"}, ${painted ? "painted may move" : "all may move"}`
  }

  /** What was written by hand, loaded, or undone in the graph. */
  function read() {
    if (!value || value.value === text) return
    text = String(value.value ?? "")
    const drawing = parsed(text)
    readable = drawing !== null
    if (drawing && history.canUndo()) history.set(drawing)
    else if (drawing) history = historyOf(drawing)
    update()
  }

  function look() {
    read()
    const wanted = loadedAbove(browser, node, "image") ?? ran
    if (wanted === from) return
    from = wanted
    if (!wanted) {
      shown = null
      return update()
    }
    picture(wanted).then(
      (image) => {
        if (from !== wanted) return
        shown = image
        update()
        brush.set(brush.value())
      },
      () => {}, // gone from the server: the last one stays
    )
  }

  /** @param {ComfyFile | undefined} file */
  function take(file) {
    if (!file) return
    ran = address(browser.api, file)
    look()
  }

  // Values and pictures also change unseen: by undo, by other scripts, by what is above.
  const timer = setInterval(look, 500)
  panel.signal.addEventListener("abort", () => clearInterval(timer))
  for (const name of ["onConfigure", "onConnectionsChange"]) chain(node, name, () => void queueMicrotask(look))
  if (value) chain(value, "callback", () => void queueMicrotask(look))
  update()
  look()

  return {
    /** @param {Record<string, any>} output */
    show: (output) => take(output?.velatura_editor?.[0]?.image),
    /** @param {string} event @param {any} told */
    hear(event, told) {
      if (event === "editor") take(told.image)
    },
  }
}
