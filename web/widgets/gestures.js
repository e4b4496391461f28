/** Gestures that the graph has a use for as well: two fingers, and the middle button. */

/** @typedef {{ x: number, y: number }} Spot on the screen */

/**
 * Follow the middle button from a press on `element`. In Nodes 2.0 the graph takes it before the element hears of it, so
 * the window is listened to.
 * @param {HTMLElement} element @param {(dx: number, dy: number) => void} move by pixels of the screen
 * @param {AbortSignal} signal
 */
export function dragMiddle(element, move, signal) {
  /** @type {Spot | null} */
  let last = null
  const own = (/** @type {Event} */ event) => {
    event.stopImmediatePropagation()
    event.preventDefault()
  }
  const listen = (/** @type {string} */ name, /** @type {(event: PointerEvent) => void} */ hear) =>
    window.addEventListener(name, /** @type {EventListener} */ (hear), { capture: true, signal })
  listen("pointerdown", (event) => {
    if (event.button !== 1 || !(event.target instanceof Node) || !element.contains(event.target)) return
    last = { x: event.clientX, y: event.clientY }
    own(event)
  })
  listen("pointermove", (event) => {
    if (!last) return
    move(event.clientX - last.x, event.clientY - last.y)
    last = { x: event.clientX, y: event.clientY }
    own(event)
  })
  for (const name of ["pointerup", "pointercancel"]) {
    listen(name, (event) => {
      if (!last) return
      last = null
      own(event)
    })
  }
  // Some systems paste, or scroll, with it.
  for (const name of ["mousedown", "auxclick"]) {
    element.addEventListener(name, (event) => {
      if (/** @type {MouseEvent} */ (event).button === 1) event.preventDefault()
    })
  }
}

/**
 * Follow two fingers: how much they part, around where, and how far they move together. The graph, which follows them
 * too, does not hear of those that are on `element`.
 * @param {HTMLElement} element
 * @param {() => void} start the second finger is down: whatever the first one did was not meant
 * @param {(factor: number, middle: Spot, dx: number, dy: number) => void} move in pixels of the screen
 * @param {AbortSignal} signal
 */
export function pinch(element, start, move, signal) {
  /** @type {Map<number, Spot>} */
  const fingers = new Map()
  const both = () => {
    const [a, b] = fingers.values()
    return { far: Math.hypot(a.x - b.x, a.y - b.y) || 1, x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 }
  }
  element.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch" || fingers.size > 1) return
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY })
    if (fingers.size < 2) return
    element.setPointerCapture(event.pointerId)
    event.stopPropagation()
    start()
  })
  element.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return
    const old = fingers.size > 1 ? both() : null
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY })
    if (!old) return
    const now = both()
    event.stopPropagation()
    move(now.far / old.far, now, now.x - old.x, now.y - old.y)
  })
  for (const name of /** @type {const} */ (["pointerup", "pointercancel", "lostpointercapture"])) {
    element.addEventListener(name, (event) => void fingers.delete(event.pointerId))
  }
  for (const name of ["touchstart", "touchmove", "touchend", "touchcancel"]) {
    const hide = (/** @type {Event} */ event) => event.target === element && event.stopPropagation()
    window.addEventListener(name, hide, { capture: true, passive: true, signal })
  }
}
