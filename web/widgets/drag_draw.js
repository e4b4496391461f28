/** Drawing a picture with arrows and a mask over it. */

import { spotOf } from "./view.js"

/** @typedef {import("./drag_value.js").Drawing} Drawing */
/** @typedef {import("./drag_value.js").Stroke} Stroke */
/** @typedef {import("./drag_value.js").End} End */
/** @typedef {import("./view.js").View} View */
/** @typedef {import("./view.js").Spot} Spot */
/** @typedef {[number, number]} Place */

/** Pixels of the canvas to one of the stage: sharp on fine screens, and where the graph is enlarged. */
export const SHARP = 2
const MASK_SIDE = 2048
const HANDLE = "#e0455e"
const TARGET = "#2f8fe0"
const MASK = "rgb(47 143 224)"

/**
 * @typedef {object} Scene
 * @property {View} view
 * @property {Place} size of the picture
 * @property {CanvasImageSource | null} picture
 * @property {Drawing} drawing
 * @property {End | null} [selected]
 * @property {{ spot: Spot, size: number } | null} [brush] a ring where it would paint
 * @property {Place[][]} [trails] where handles came from
 */

/**
 * @param {HTMLCanvasElement} canvas of the stage's size @param {Scene} scene
 * @param {HTMLCanvasElement} layer kept for the mask between two drawings
 */
export function draw(canvas, scene, layer) {
  const width = Math.round(canvas.clientWidth * SHARP)
  const height = Math.round(canvas.clientHeight * SHARP)
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
  const context = width && height ? canvas.getContext("2d") : null
  if (!context) return
  const { view, size, picture, drawing } = scene
  context.setTransform(1, 0, 0, 1, 0, 0)
  context.clearRect(0, 0, width, height)
  context.setTransform(SHARP * view.scale, 0, 0, SHARP * view.scale, SHARP * view.x, SHARP * view.y)
  context.imageSmoothingEnabled = view.scale < 3
  if (picture) context.drawImage(picture, 0, 0, ...size)
  else {
    context.fillStyle = "#8884"
    context.fillRect(0, 0, ...size)
  }
  if (drawing.mask.length) {
    context.globalAlpha = 0.45
    context.drawImage(masked(layer, drawing.mask, size), 0, 0, ...size)
    context.globalAlpha = 1
  }
  context.setTransform(SHARP, 0, 0, SHARP, 0, 0)
  for (const trail of scene.trails ?? []) drawTrail(context, view, trail)
  drawing.points.forEach(({ from, to }, arrow) => {
    const chosen = scene.selected?.arrow === arrow ? scene.selected.end : null
    drawArrow(context, spotOf(view, from), spotOf(view, to), chosen, drawing.points.length > 1 ? `${arrow + 1}` : "")
  })
  if (scene.brush) ring(context, scene.brush.spot, (scene.brush.size * view.scale) / 2)
}

/** @type {WeakMap<HTMLCanvasElement, { mask: Stroke[], size: Place }>} */
const drawn = new WeakMap()

/**
 * The strokes' colour, clear where nothing is painted.
 * @param {HTMLCanvasElement} layer @param {Stroke[]} mask @param {Place} size
 */
function masked(layer, mask, size) {
  const before = drawn.get(layer)
  if (before?.mask === mask && before.size[0] === size[0] && before.size[1] === size[1]) return layer
  drawn.set(layer, { mask, size })
  const share = Math.min(1, MASK_SIDE / Math.max(...size))
  Object.assign(layer, { width: Math.ceil(size[0] * share), height: Math.ceil(size[1] * share) })
  const context = layer.getContext("2d")
  if (!context) return layer
  context.setTransform(share, 0, 0, share, share / 2, share / 2)
  context.lineCap = context.lineJoin = "round"
  context.strokeStyle = MASK
  for (const { paint, size: width, path } of mask) {
    context.globalCompositeOperation = paint ? "source-over" : "destination-out"
    context.lineWidth = width
    context.beginPath()
    context.moveTo(...path[0])
    for (const place of path.length > 1 ? path.slice(1) : path) context.lineTo(...place)
    context.stroke()
  }
  return layer
}

/**
 * @param {CanvasRenderingContext2D} context @param {Spot} from @param {Spot} to @param {"from" | "to" | null} chosen
 * @param {string} name
 */
function drawArrow(context, from, to, chosen, name) {
  const angle = Math.atan2(to.y - from.y, to.x - from.x)
  const long = Math.hypot(to.x - from.x, to.y - from.y) > 14
  for (const [colour, width] of /** @type {const} */ ([["#000a", 5], ["#fff", 2.5]])) {
    context.strokeStyle = colour
    context.lineWidth = width
    context.lineCap = context.lineJoin = "round"
    context.beginPath()
    context.moveTo(from.x, from.y)
    context.lineTo(to.x, to.y)
    if (long) {
      // The head lies outside of the target's dot.
      const [x, y] = [to.x - 8 * Math.cos(angle), to.y - 8 * Math.sin(angle)]
      for (const turn of [2.6, -2.6]) {
        context.moveTo(x + 8 * Math.cos(angle + turn), y + 8 * Math.sin(angle + turn))
        context.lineTo(x, y)
      }
    }
    context.stroke()
  }
  dot(context, from, HANDLE, 5.5)
  dot(context, to, TARGET, 4.5)
  if (chosen) ring(context, chosen === "from" ? from : to, 9)
  if (name) label(context, name, { x: from.x - 12 * Math.cos(angle), y: from.y - 12 * Math.sin(angle) })
}

/** @param {CanvasRenderingContext2D} context @param {View} view @param {Place[]} trail */
function drawTrail(context, view, trail) {
  context.strokeStyle = "#fffc"
  context.lineWidth = 1.5
  context.beginPath()
  trail.map((place) => spotOf(view, place)).forEach(({ x, y }, k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)))
  context.stroke()
}

/** @param {CanvasRenderingContext2D} context @param {Spot} spot @param {string} colour @param {number} radius */
function dot(context, { x, y }, colour, radius) {
  context.beginPath()
  context.arc(x, y, radius, 0, 2 * Math.PI)
  context.fillStyle = colour
  context.fill()
  context.strokeStyle = "#fff"
  context.lineWidth = 1.5
  context.stroke()
}

/** @param {CanvasRenderingContext2D} context @param {Spot} spot @param {number} radius */
function ring(context, { x, y }, radius) {
  for (const [colour, width] of /** @type {const} */ ([["#000", 3], ["#fff", 1.5]])) {
    context.beginPath()
    context.arc(x, y, Math.max(radius, 1), 0, 2 * Math.PI)
    context.strokeStyle = colour
    context.lineWidth = width
    context.stroke()
  }
}

/** @param {CanvasRenderingContext2D} context @param {string} text @param {Spot} spot */
function label(context, text, { x, y }) {
  context.font = "bold 10px Inter, Arial, sans-serif"
  context.textAlign = "center"
  context.textBaseline = "middle"
  context.strokeStyle = "#000"
  context.lineWidth = 3
  context.strokeText(text, x, y)
  context.fillStyle = "#fff"
  context.fillText(text, x, y)
}
