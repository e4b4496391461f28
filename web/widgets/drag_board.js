/** The picture to draw on: pointers and keys, and how they change the drawing. */

import { el } from "./dom.js"
import { draw } from "./drag_draw.js"
import { listenToKeys } from "./drag_keys.js"
import { inside, withArrow, withEnd, withoutArrow, withStroke } from "./drag_value.js"
import { dragMiddle, pinch } from "./gestures.js"
import { drag } from "./pointer.js"
import { arrowAt, distance, endAt, fitted, moved, placeAt, spotOf, zoomed } from "./view.js"

/** @typedef {import("./drag_value.js").Drawing} Drawing */
/** @typedef {import("./drag_value.js").End} End */
/** @typedef {import("./view.js").Place} Place */
/** @typedef {import("./view.js").Spot} Spot */

/**
 * @typedef {object} Editor what is drawn, and with what
 * @property {() => Drawing} drawing
 * @property {() => Place | null} size of the picture; null while there is none
 * @property {() => CanvasImageSource | null} picture
 * @property {(next: Drawing, merge?: string) => void} change
 * @property {() => void} tell something else than the drawing has changed
 * @property {Record<string, () => void>} keys what other keys do
 * @property {"arrows" | "brush" | "erase"} tool
 * @property {number} brush its width in pixels of the picture
 * @property {End | null} selected
 */

/** @typedef {{ move: (spot: Spot) => void, end?: () => void, abort?: () => void }} Gesture */

const REACH = { mouse: 10, pen: 12, touch: 20 }
const SHORTEST = 4
const HELP =
  "Drag from a handle to its target. N adds an arrow, Page Up and Page Down choose an end, arrow keys move " +
  "it, Delete removes it, P, B and E choose arrows, brush and eraser, Enter dabs."

/** @param {Editor} editor @param {AbortSignal} signal */
export function addBoard(editor, signal) {
  const canvas = el("canvas")
  const layer = el("canvas")
  // An input, and not just anything with a focus: the frontend leaves Ctrl+Z alone in those.
  const keys = el("input", { type: "button", class: "velatura-keys", "aria-label": "Picture to draw on", value: " " })
  keys.setAttribute("aria-description", HELP)
  const element = el("div", { class: "velatura-board", "data-capture-wheel": "true" }, canvas, keys)
  let view = { scale: 1, x: 0, y: 0 }
  let whole = true // as long as nobody has zoomed
  let space = false
  let gesture = /** @type {Gesture | null} */ (null)
  let draft = /** @type {Drawing | null} */ (null)
  let pointed = /** @type {Spot | null} */ (null)
  let waiting = 0

  const stage = () => /** @type {Place} */ ([element.clientWidth, element.clientHeight])
  const spotAt = (/** @type {{ x: number, y: number }} */ at) => ({ x: at.x * stage()[0], y: at.y * stage()[1] })
  const middle = () => ({ x: stage()[0] / 2, y: stage()[1] / 2 })

  function show() {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0
      const size = editor.size()
      if (!size) return
      if (whole) view = fitted(size, stage())
      const brush = editor.tool !== "arrows" && pointed ? { spot: pointed, size: editor.brush } : null
      const drawing = draft ?? editor.drawing()
      draw(canvas, { view, size, picture: editor.picture(), drawing, selected: editor.selected, brush }, layer)
    })
  }

  /** @param {number} dx @param {number} dy in pixels of the stage */
  function pan(dx, dy) {
    const size = editor.size()
    if (size) view = moved(view, dx, dy, size, stage())
    whole = false
    show()
  }

  /** @param {number} factor @param {Spot} [spot] */
  function zoom(factor, spot = middle()) {
    view = zoomed(view, factor, spot)
    pan(0, 0)
  }

  function fit() {
    whole = true
    show()
  }

  /** @param {Spot} spot @param {PointerEvent} event @returns {Gesture} */
  function begin(spot, event) {
    const size = editor.size()
    let last = spot
    const panning = {
      move(/** @type {Spot} */ to) {
        pan(to.x - last.x, to.y - last.y)
        last = to
      },
    }
    if (!size || space) return panning
    const start = placeAt(view, spot)
    if (editor.tool !== "arrows") return stroke(start)
    const reach = REACH[/** @type {"mouse"} */ (event.pointerType)] ?? REACH.mouse
    const end = endAt(editor.drawing().points, view, spot, reach)
    if (end) return moving(end, start, size)
    const from = inside(start, size)
    return distance(spotOf(view, from), spot) > reach ? panning : adding(from, spot, size)
  }

  /** @param {End} end @param {Place} start @param {Place} size @returns {Gesture} */
  function moving(end, start, size) {
    const old = editor.drawing().points[end.arrow][end.end]
    editor.selected = end
    editor.tell()
    return {
      move(spot) {
        const [x, y] = placeAt(view, spot)
        const place = inside([old[0] + x - start[0], old[1] + y - start[1]], size)
        draft = place[0] === old[0] && place[1] === old[1] ? null : withEnd(editor.drawing(), end, place)
      },
    }
  }

  /** @param {Place} from @param {Spot} start @param {Place} size @returns {Gesture} */
  function adding(from, start, size) {
    const before = editor.selected
    const arrow = editor.drawing().points.length
    return {
      move(spot) {
        if (!draft && distance(spot, start) < SHORTEST) return
        draft = withArrow(editor.drawing(), { from, to: inside(placeAt(view, spot), size) })
        editor.selected = { arrow, end: "to" }
      },
      end() {
        if (!draft) editor.selected = null // a click beside everything
      },
      abort: () => (editor.selected = before),
    }
  }

  /** @param {Place} start @returns {Gesture} */
  function stroke(start) {
    /** @type {Place[]} */
    let path = [start]
    return {
      move(spot) {
        pointed = spot
        const place = placeAt(view, spot)
        const last = path[path.length - 1]
        // Closer points would change nothing that one could see, and make the text long.
        if (Math.hypot(place[0] - last[0], place[1] - last[1]) > Math.max(1, editor.brush / 8)) path = [...path, place]
        draft = withStroke(editor.drawing(), { paint: editor.tool === "brush", size: editor.brush, path })
      },
    }
  }

  function abort() {
    gesture?.abort?.()
    draft = null
    gesture = { move() {} } // nothing more of it until it is let go
    show()
  }

  drag(
    keys,
    (at, event) => {
      if (!gesture) {
        keys.focus({ preventScroll: true })
        gesture = begin(spotAt(at), event)
      }
      gesture.move(spotAt(at))
      show()
    },
    (event) => {
      if (event.type === "pointercancel") gesture?.abort?.()
      else {
        gesture?.end?.()
        if (draft) editor.change(draft)
      }
      gesture = draft = null
      editor.tell()
      show()
    },
  )
  const zoomOnScreen = () => (element.getBoundingClientRect().width || 1) / (stage()[0] || 1)
  dragMiddle(element, (dx, dy) => pan(dx / zoomOnScreen(), dy / zoomOnScreen()), signal)
  const spread = (/** @type {number} */ factor, /** @type {Spot} */ at, /** @type {number} */ dx, /** @type {number} */ dy) => {
    pan(dx / zoomOnScreen(), dy / zoomOnScreen())
    const box = element.getBoundingClientRect()
    zoom(factor, { x: (at.x - box.left) / zoomOnScreen(), y: (at.y - box.top) / zoomOnScreen() })
  }
  pinch(keys, abort, spread, signal)
  keys.addEventListener("pointermove", (event) => {
    pointed = { x: (event.offsetX * stage()[0]) / (keys.offsetWidth || 1), y: event.offsetY }
    show()
  })
  keys.addEventListener("pointerleave", () => {
    pointed = null
    show()
  })
  keys.addEventListener("contextmenu", (event) => {
    event.preventDefault()
    event.stopPropagation()
    const arrow = arrowAt(editor.drawing().points, view, { x: event.offsetX, y: event.offsetY }, REACH.mouse)
    if (arrow >= 0) remove(arrow)
  })
  element.addEventListener("wheel", (event) => {
    // Only where one is at work: everywhere else it zooms the graph.
    if (document.activeElement !== keys || event.ctrlKey || event.metaKey) return
    event.preventDefault()
    event.stopPropagation()
    zoom(Math.exp(-event.deltaY / 400), { x: event.offsetX, y: event.offsetY })
  })

  /** @param {number} arrow */
  function remove(arrow) {
    editor.selected = null
    if (gesture) abort()
    editor.change(withoutArrow(editor.drawing(), arrow))
  }

  function dab() {
    if (editor.tool === "arrows" || !editor.size()) return
    stroke(placeAt(view, pointed ?? middle())).move(pointed ?? middle())
    if (draft) editor.change(draft)
    draft = null
  }

  listenToKeys(keys, editor, {
    pan,
    zoom,
    fit,
    remove,
    dab,
    abort: () => gesture && abort(),
    hold: (held) => (space = held),
    place: () => placeAt(view, editor.tool === "arrows" ? middle() : (pointed ?? middle())),
    point(place) {
      pointed = spotOf(view, place)
      show()
    },
  })
  const sized = new ResizeObserver(show)
  sized.observe(element)
  signal.addEventListener("abort", () => {
    sized.disconnect()
    cancelAnimationFrame(waiting)
  })

  return { element, show, fit, zoom }
}
