/** Layers put together in the browser. */

/** @typedef {import("./layers_chain.js").Layer} Layer */
/** @typedef {{ layer: Layer, picture: CanvasImageSource | null, visible: boolean }} Shown */

/**
 * The blend modes by the canvas's names. "lighter" adds as ours does over what is opaque; over what is transparent it
 * adds the alphas as well, where ours lets one cover the other.
 * @type {Record<string, GlobalCompositeOperation>}
 */
export const OPERATIONS = { normal: "source-over", add: "lighter" }

/**
 * @param {HTMLCanvasElement} canvas of the stack's size @param {Shown[]} layers the lowest first
 * @param {boolean} alpha show how opaque it is: white is opaque
 */
export function compose(canvas, layers, alpha) {
  const context = canvas.getContext("2d", { willReadFrequently: true })
  if (!context) return
  context.globalCompositeOperation = "source-over"
  context.clearRect(0, 0, canvas.width, canvas.height)
  for (const { layer, picture, visible } of layers) {
    if (!visible || !picture) continue
    context.globalAlpha = layer.opacity
    context.globalCompositeOperation = OPERATIONS[layer.blend] ?? /** @type {GlobalCompositeOperation} */ (layer.blend)
    context.drawImage(picture, layer.x, layer.y)
  }
  context.globalAlpha = 1
  if (!alpha) return
  for (const [operation, colour] of /** @type {const} */ ([["source-in", "#fff"], ["destination-over", "#000"]])) {
    context.globalCompositeOperation = operation
    context.fillStyle = colour
    context.fillRect(0, 0, canvas.width, canvas.height)
  }
}

/**
 * The colour of a pixel in words.
 * @param {HTMLCanvasElement} canvas @param {number} x @param {number} y
 */
export function colourAt(canvas, x, y) {
  const data = canvas.getContext("2d", { willReadFrequently: true })?.getImageData(x, y, 1, 1).data
  return data ? colourText([...data]) : ""
}

/** @param {number[]} rgba in 0 .. 255 */
export function colourText([red, green, blue, alpha]) {
  if (!alpha) return "transparent"
  const hex = [red, green, blue].map((value) => value.toString(16).padStart(2, "0")).join("")
  return `#${hex}${alpha < 255 ? ` at ${Math.round(alpha / 2.55)} %` : ""}`
}
