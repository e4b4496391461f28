/** Pointers (mouse, pen, touch) and keys, for anything that is dragged. */

/** @typedef {{ x: number, y: number }} Point from 0, 0 at an element's upper left to 1, 1 at its lower right */

/**
 * Where an event is on an element: right at any zoom, since both are measured on the screen.
 * @param {{ clientX: number, clientY: number }} event @param {Element} element @returns {Point}
 */
export function placeOn(event, element) {
  const box = element.getBoundingClientRect()
  return {
    x: clamp((event.clientX - box.left) / (box.width || 1)),
    y: clamp((event.clientY - box.top) / (box.height || 1)),
  }
}

/** @param {number} value @param {number} [low] @param {number} [high] */
export function clamp(value, low = 0, high = 1) {
  return Math.min(high, Math.max(low, value))
}

/**
 * Follow a pointer from its press on `element` to its release. Only the main button, and one finger, drags; the graph
 * under it stays where it is.
 * @param {HTMLElement} element
 * @param {(at: Point, event: PointerEvent) => void} move called for the press as well
 * @param {(event: PointerEvent) => void} [end]
 */
export function drag(element, move, end = () => {}) {
  /** @type {number | null} */
  let held = null
  element.style.touchAction = "none"
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || held !== null) return
    held = event.pointerId
    element.setPointerCapture(held)
    event.stopPropagation()
    move(placeOn(event, element), event)
  })
  element.addEventListener("pointermove", (event) => {
    if (event.pointerId !== held) return
    event.stopPropagation()
    move(placeOn(event, element), event)
  })
  for (const name of /** @type {const} */ (["pointerup", "pointercancel", "lostpointercapture"])) {
    element.addEventListener(name, (event) => {
      if (event.pointerId !== held) return
      held = null
      event.stopPropagation()
      end(event)
    })
  }
}

/**
 * @typedef {object} Slider
 * @property {(value: number) => void} set as if it had been dragged there
 * @property {() => number} value
 * @property {(high: number) => void} reach the largest value from now on
 */

/**
 * Make an element a slider from 0 to `high`: dragged sideways, moved with the arrow keys, read out by its `text`.
 * @param {HTMLElement} element
 * @param {{ label: string, high: number, step: number, page?: number, value?: number, text: (value: number) => string,
 *   changed: (value: number) => void, valueAt?: (share: number) => number }} options `valueAt` tells the value at a share
 *   of the element's width
 * @returns {Slider}
 */
export function slider(element, { label, high, step, page = 10 * step, value = 0, text, changed, valueAt }) {
  element.setAttribute("role", "slider")
  element.setAttribute("aria-label", label)
  element.setAttribute("aria-valuemin", "0")
  element.tabIndex = 0

  /** @param {number} wanted */
  function set(wanted) {
    value = clamp(Math.round(wanted / step) * step, 0, high)
    element.setAttribute("aria-valuemax", String(high))
    element.setAttribute("aria-valuenow", String(Math.round(value * 1e6) / 1e6))
    element.setAttribute("aria-valuetext", text(value))
    changed(value)
  }

  drag(element, (at) => {
    element.focus({ preventScroll: true })
    set(valueAt ? valueAt(at.x) : at.x * high)
  })
  onKeys(element, {
    ArrowLeft: () => set(value - step),
    ArrowDown: () => set(value - step),
    ArrowRight: () => set(value + step),
    ArrowUp: () => set(value + step),
    PageDown: () => set(value - page),
    PageUp: () => set(value + page),
    Home: () => set(0),
    End: () => set(high),
  })
  set(value)
  return {
    set,
    value: () => value,
    reach(most) {
      high = most
      set(value)
    },
  }
}

/**
 * Keys that mean something on an element; the page's own shortcuts do not hear them.
 * @param {HTMLElement} element @param {Record<string, () => void>} actions
 */
export function onKeys(element, actions) {
  element.addEventListener("keydown", (event) => {
    const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : actions[event.key]
    if (!act) return
    event.preventDefault()
    event.stopPropagation()
    act()
  })
}
