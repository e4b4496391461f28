/** Curves that grow while a node works, and stay when it is done. */

import { el, svg } from "./dom.js"
import { addPanel } from "./panel.js"
import { slider } from "./pointer.js"
import { nearest, runningMean, scaleOf, written } from "./scale.js"

/** @typedef {import("./scale.js").Point} Point */
/** @typedef {{ name: string, points: Point[] }} Line */
/** @typedef {{ x: string, mean: number, anew: boolean, lines: Line[] }} Told */

const EMPTY = 20
const HEIGHT = 170
const LEFT = 44
const RIGHT = 6
const TOP = 5
const BOTTOM = 16

/** @param {Browser} browser @param {ComfyNode} node */
export function addCurves(browser, node) {
  const panel = addPanel(browser, node, {
    name: "velatura_curves",
    type: "VELATURA_CURVES",
    label: "Curves",
    height: EMPTY,
  })
  const empty = el("div", { class: "velatura-hint" }, "While it runs, its curves are drawn here.")
  const plot = el("div", { class: "velatura-plot" })
  let drawing = svg("svg")
  // The drawing is replaced; what has the focus and the pointer must stay.
  const chart = el("div", { class: "velatura-chart", hidden: true }, drawing, plot)
  const toggle = el("button", { type: "button", class: "velatura-button", "aria-pressed": "true" }, "log")
  toggle.title = "Logarithmic scale"
  const readout = el("div", { class: "velatura-readout" })
  const row = el("div", { class: "velatura-row", hidden: true }, readout, toggle)
  panel.element.append(empty, chart, row)

  /** @type {Told} */
  let about = { x: "step", mean: 0, anew: true, lines: [] }
  /** @type {Line[]} */
  let lines = []
  let logarithmic = true
  // Where the pointer is; otherwise the end is read out.
  let reading = false
  let at = 0

  const cursor = slider(plot, {
    label: "Step to read out",
    high: 0,
    step: 1,
    text: (value) => texts(value).join(", "),
    changed: (value) => {
      at = value
      draw()
    },
    valueAt: (share) => nearest(longest(), first() + share * (last() - first())),
  })
  toggle.addEventListener("click", () => {
    logarithmic = !logarithmic
    toggle.setAttribute("aria-pressed", String(logarithmic))
    draw()
  })
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect()
    reading = true
    cursor.set(nearest(longest(), first() + ((event.clientX - box.left) / box.width) * (last() - first())))
  })
  plot.addEventListener("keydown", () => (reading = true), { capture: true })
  for (const name of ["pointerleave", "blur"]) plot.addEventListener(name, () => follow())
  const sized = new ResizeObserver(() => draw())
  sized.observe(chart)
  panel.signal.addEventListener("abort", () => sized.disconnect())

  /** @returns {Point[]} the points that a step is read out of */
  function longest() {
    return lines.reduce((/** @type {Point[]} */ most, { points }) => (points.length > most.length ? points : most), [])
  }
  const first = () => longest()[0]?.[0] ?? 0
  const last = () => longest().at(-1)?.[0] ?? 1

  function follow() {
    reading = false
    cursor.set(longest().length - 1)
  }

  /** @param {number} place @returns {string[]} */
  function texts(place) {
    const step = longest()[place]?.[0]
    if (step === undefined) return []
    const values = lines.map(({ name, points }) => `${name} ${written(points[nearest(points, step)][1])}`)
    return [`${about.x} ${step}`, ...values]
  }

  function draw() {
    const [step, ...values] = texts(at)
    readout.replaceChildren(el("span", {}, step ?? ""), ...values.map((text, k) => el("span", { class: line(k) }, text)))
    const { clientWidth: width, clientHeight: height } = chart
    if (!width || !height || !lines.length) return
    const scale = scaleOf(
      lines.flatMap(({ points }) => points.map(([, y]) => y)),
      logarithmic,
    )
    const span = last() - first() || 1
    const across = (/** @type {number} */ x) => LEFT + ((x - first()) / span) * (width - LEFT - RIGHT)
    const down = (/** @type {number} */ y) => TOP + (1 - scale.share(y)) * (height - TOP - BOTTOM)
    const path = (/** @type {Point[]} */ points) =>
      "M" + points.map(([x, y]) => `${across(x).toFixed(1)} ${down(y).toFixed(1)}`).join("L")
    const picture = svg("svg", { width, height, "aria-hidden": "true" })
    for (const tick of scale.ticks) {
      picture.append(svg("path", { class: "velatura-grid", d: `M${LEFT} ${down(tick)}H${width - RIGHT}` }))
      picture.append(svg("text", { x: LEFT - 4, y: down(tick) + 3.5, "text-anchor": "end" }, written(tick)))
    }
    for (const x of [first(), last()]) {
      const anchor = x === first() ? "start" : "end"
      picture.append(svg("text", { x: across(x), y: height - 4, "text-anchor": anchor }, String(x)))
    }
    lines.forEach(({ points }, k) => {
      const smooth = about.mean > 1 && points.length > about.mean
      picture.append(svg("path", { class: `${line(k)} ${smooth ? "velatura-raw" : ""}`, d: path(points) }))
      if (smooth) picture.append(svg("path", { class: line(k), d: path(runningMean(points, about.mean)) }))
    })
    const here = longest()[at]?.[0]
    if (reading && here !== undefined) {
      picture.append(svg("path", { class: "velatura-cursor", d: `M${across(here)} ${TOP}V${height - BOTTOM}` }))
      lines.forEach(({ points }, k) => {
        const [x, y] = points[nearest(points, here)]
        picture.append(svg("circle", { class: line(k), cx: across(x), cy: down(y), r: 3 }))
      })
    }
    drawing.replaceWith(picture)
    drawing = picture
  }

  /** @param {Told} told */
  function take(told) {
    about = told
    if (told.anew) lines = []
    for (const { name, points } of told.lines) {
      const there = lines.find((each) => each.name === name)
      if (there) there.points.push(...points)
      else lines.push({ name, points: [...points] })
    }
    if (!longest().length) return
    empty.hidden = true
    chart.hidden = row.hidden = false
    panel.resize(HEIGHT)
    cursor.reach(longest().length - 1)
    if (!reading) follow()
  }

  return {
    /** @param {Record<string, any>} output */
    show(output) {
      const given = output?.velatura_curves?.[0]
      if (given) take(given)
    },
    /** @param {string} event @param {Told} told */
    hear(event, told) {
      if (event === "curves") take(told)
    },
  }
}

/** The class of a line's colour. @param {number} number */
function line(number) {
  return `velatura-line velatura-line-${number % 6}`
}
