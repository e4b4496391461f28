/** The layer viewer: a stack of layers to look through, move and mix; what is changed goes to the nodes that own it. */

import { button, el } from "./dom.js"
import { asOwned, exchange, ownersOf, put } from "./layers_chain.js"
import { colourAt, compose } from "./layers_draw.js"
import { addRow } from "./layers_row.js"
import { addPanel } from "./panel.js"
import { address, picture } from "./pictures.js"
import { clamp, drag, placeOn } from "./pointer.js"

/** @typedef {import("./layers_chain.js").Layer} Layer */
/** @typedef {import("./layers_chain.js").Owner} Owner */
/** @typedef {{ width: number, height: number, layers: Layer[] }} Stack */

const BARE = 20
const PICTURE = 220
const LINE = 26
const FAR = 16384

/** @param {Browser} browser @param {ComfyNode} node */
export function addLayers(browser, node) {
  const panel = addPanel(browser, node, { name: "velatura_layers", type: "VELATURA_LAYERS_VIEW", label: "Layers", height: BARE })
  const hint = el("div", { class: "velatura-hint" }, "Run the graph to look through its layers here.")
  const canvas = el("canvas")
  const outline = el("div", { class: "velatura-outline", hidden: true })
  // An input: the frontend leaves keys alone in those.
  const keys = el("input", { type: "button", class: "velatura-keys", value: " " })
  keys.setAttribute("aria-label", "Layers. Drag or arrow keys move the chosen layer, Page Up and Page Down choose one.")
  const frame = el("div", { class: "velatura-frame velatura-checker" }, canvas, outline, keys)
  const stage = el("div", { class: "velatura-stage", hidden: true }, frame)
  const alpha = button("Alpha", "Alpha: white is opaque", () => {
    alpha.setAttribute("aria-pressed", String(!showsAlpha()))
    draw()
  })
  const showsAlpha = () => alpha.getAttribute("aria-pressed") === "true"
  const picked = el("span", { class: "velatura-count" })
  const swatch = el("span", { class: "velatura-swatch" })
  const bar = el("div", { class: "velatura-row", hidden: true }, alpha, swatch, picked)
  const list = el("div", { class: "velatura-list", role: "group", "aria-label": "Layers, the topmost first" })
  panel.element.append(hint, stage, bar, list)

  /** @type {Stack} */
  let stack = { width: 0, height: 0, layers: [] }
  /** @type {(HTMLImageElement | null)[]} */
  let pictures = []
  /** @type {(Owner | null)[]} */
  let owners = []
  /** @type {ReturnType<typeof addRow>[]} */
  let rows = []
  let hidden = new Set()
  let solo = -1
  let chosen = -1
  let drawn = ""

  const layers = () => stack.layers.map((layer, k) => asOwned(layer, owners[k]))
  const movable = (/** @type {number} */ k) => !!owners[k]?.widgets.x && !!owners[k]?.widgets.y
  const visible = (/** @type {number} */ k) => (solo >= 0 ? k === solo : !hidden.has(k))

  function draw() {
    const now = layers()
    drawn = JSON.stringify(now)
    compose(canvas, now.map((layer, k) => ({ layer, picture: pictures[k], visible: visible(k) })), showsAlpha())
    const at = now[chosen]
    const size = pictures[chosen]
    outline.hidden = !at || !size
    if (at && size) {
      const share = (/** @type {number} */ value, /** @type {number} */ whole) => `${(100 * value) / whole}%`
      outline.style.left = share(at.x, stack.width)
      outline.style.top = share(at.y, stack.height)
      outline.style.width = share(size.naturalWidth, stack.width)
      outline.style.height = share(size.naturalHeight, stack.height)
    }
    rows.forEach((row, k) =>
      row.show(now[k], { visible: !hidden.has(k), solo: solo === k, chosen: chosen === k, up: swaps(k), down: swaps(k - 1) }),
    )
  }

  /** Whether a layer and the one above can change places: whatever is the lowest makes the canvas. @param {number} k */
  function swaps(k) {
    const picture = pictures[k + 1]
    const fits = picture?.naturalWidth === stack.width && picture.naturalHeight === stack.height
    return exchange(owners, k) !== null && (k > 0 || fits)
  }

  /** @param {number} k the lower of the two */
  function raise(k) {
    const change = exchange(owners, k)
    if (!change) return
    changing(change)
    for (const each of [stack.layers, pictures]) [each[k], each[k + 1]] = [each[k + 1], each[k]]
    const moved = (/** @type {number} */ place) => (place === k ? k + 1 : place === k + 1 ? k : place)
    hidden = new Set([...hidden].map(moved))
    solo = moved(solo)
    chosen = moved(chosen)
    own()
    draw()
  }

  /** Changes that the graph can undo as one. @param {() => void} change */
  function changing(change) {
    browser.app.canvas?.emitBeforeChange?.()
    change()
    browser.app.canvas?.emitAfterChange?.()
  }

  /** @param {number} k @param {number} x @param {number} y */
  function place(k, x, y) {
    if (!movable(k)) return
    put(owners[k]?.widgets.x, clamp(Math.round(x), -FAR, FAR))
    put(owners[k]?.widgets.y, clamp(Math.round(y), -FAR, FAR))
    draw()
  }

  /** @param {number} k */
  function choose(k) {
    chosen = k
    draw()
  }

  /** @param {{ x: number, y: number }} at */
  function pixelAt({ x, y }) {
    return [Math.min(Math.floor(x * stack.width), stack.width - 1), Math.min(Math.floor(y * stack.height), stack.height - 1)]
  }

  /** The topmost layer that covers a pixel and is seen there. @param {number[]} pixel */
  function topmost([x, y]) {
    const probe = el("canvas", { width: 1, height: 1 })
    const now = layers()
    for (let k = now.length - 1; k >= 0; k--) {
      const layer = { ...now[k], x: now[k].x - x, y: now[k].y - y, opacity: 1, blend: "normal" }
      compose(probe, [{ layer, picture: pictures[k], visible: visible(k) && movable(k) }], false)
      if (colourAt(probe, 0, 0) !== "transparent") return k
    }
    return -1
  }

  /** @type {{ from: number[], start: Layer } | null} */
  let held = null
  drag(
    keys,
    (at) => {
      const pixel = pixelAt(at)
      if (!held) {
        keys.focus({ preventScroll: true })
        if (!movable(chosen) || !visible(chosen)) choose(topmost(pixel))
        if (chosen < 0) return
        browser.app.canvas?.emitBeforeChange?.()
        held = { from: pixel, start: layers()[chosen] }
      }
      place(chosen, held.start.x + pixel[0] - held.from[0], held.start.y + pixel[1] - held.from[1])
    },
    () => {
      if (held) browser.app.canvas?.emitAfterChange?.()
      held = null
    },
  )
  keys.addEventListener("pointermove", (event) => {
    const [x, y] = pixelAt(placeOn(event, keys))
    const colour = colourAt(canvas, x, y)
    picked.textContent = `${x}, ${y}: ${colour}`
    swatch.style.background = colour.startsWith("#") ? colour.slice(0, 7) : "none"
  })
  keys.addEventListener("dblclick", (event) => choose(topmost(pixelAt(placeOn(event, keys)))))
  keys.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }
    const [dx, dy] = moves[/** @type {keyof typeof moves} */ (event.key)] ?? [0, 0]
    const count = stack.layers.length
    if (event.ctrlKey || event.metaKey || event.altKey || !count) return
    if (dx || dy) {
      const at = layers()[chosen]
      if (at) changing(() => place(chosen, at.x + dx, at.y + dy))
    } else if (event.key === "PageUp") choose((chosen + 1) % count)
    else if (event.key === "PageDown") choose((Math.max(chosen, 0) + count - 1) % count)
    else if (event.key === "Escape") choose(-1)
    else return
    event.preventDefault()
    event.stopPropagation()
  })

  /** @param {number} k */
  function rowOf(k) {
    return addRow({
      choose: () => choose(chosen === k ? -1 : k),
      eye() {
        if (!hidden.delete(k)) hidden.add(k)
        draw()
      },
      solo() {
        solo = solo === k ? -1 : k
        draw()
      },
      up: () => raise(k),
      down: () => raise(k - 1),
      opacity(value) {
        changing(() => put(owners[k]?.widgets.opacity, value))
        draw()
      },
      owned: !!owners[k]?.widgets.opacity,
    })
  }

  function own() {
    const found = ownersOf(node, stack.layers.length)
    const same = found.length === owners.length && found.every((each, k) => each?.node === owners[k]?.node)
    owners = found
    if (same) return
    rows = stack.layers.map((_, k) => rowOf(k))
    list.replaceChildren(...rows.map((row) => row.element).reverse())
  }

  /** @param {Stack} given */
  function take(given) {
    if (given.layers.length !== stack.layers.length) [hidden, solo, chosen] = [new Set(), -1, -1]
    stack = { ...given, layers: [...given.layers] }
    pictures = stack.layers.map(() => null)
    owners = []
    own()
    Object.assign(canvas, { width: stack.width, height: stack.height })
    frame.style.setProperty("--ratio", String(stack.width / stack.height))
    hint.hidden = true
    stage.hidden = bar.hidden = false
    panel.resize(PICTURE + LINE * (1 + stack.layers.length))
    draw()
    const loaded = pictures
    stack.layers.forEach(async (layer, k) => {
      const image = await picture(address(browser.api, layer.image)).catch(() => null)
      loaded[k] = image
      if (pictures === loaded) draw()
    })
  }

  // The nodes upstream change without a word to this one.
  const timer = setInterval(() => {
    if (!stack.layers.length || held) return
    own()
    if (JSON.stringify(layers()) !== drawn) draw()
  }, 500)
  panel.signal.addEventListener("abort", () => clearInterval(timer))

  return {
    /** @param {Record<string, any>} output */
    show(output) {
      const given = output?.velatura_layers?.[0]
      if (given?.layers?.length) take(given)
    },
  }
}
