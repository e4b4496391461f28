/** The timesteps and noise levels that a node's values give, drawn while they change. */

import { el, svg } from "./dom.js"
import { COUNT, SIGMAS, distilled, timesteps } from "./lcm.js"
import { addPanel, chain } from "./panel.js"
import { written } from "./scale.js"

const HEIGHT = 118
const SIDE = 8
const TOP = 8
const BOTTOM = 8
const INPUTS = ["steps", "denoise", "original_steps", "grid"]
const [LOW, HIGH] = [Math.log(SIGMAS[0]), Math.log(SIGMAS[COUNT - 1])]

/** @param {Browser} browser @param {ComfyNode} node */
export function addSchedule(browser, node) {
  const chart = el("div", { class: "velatura-chart", role: "img" })
  const says = el("div", { class: "velatura-says" })
  const panel = addPanel(browser, node, {
    name: "velatura_schedule",
    type: "VELATURA_SCHEDULE",
    label: "Schedule",
    height: HEIGHT,
  })
  panel.element.append(chart, says)
  let drawn = ""

  function draw() {
    const widgets = INPUTS.map((name) => node.widgets?.find((each) => each.name === name))
    const wired = INPUTS.filter((name) => node.inputs?.some((each) => each.widget?.name === name && each.link != null))
    const settings = Object.fromEntries(widgets.map((widget, k) => [INPUTS[k], widget?.value]))
    const { clientWidth: width, clientHeight: height } = chart
    const now = JSON.stringify([settings, wired, width, height])
    if (now === drawn) return
    drawn = now
    const given = /** @type {import("./lcm.js").Settings} */ (/** @type {unknown} */ (settings))
    const all = distilled(given)
    const chosen = wired.length ? `${wired.join(", ")}: known when the graph runs` : timesteps(given)
    const good = typeof chosen !== "string"
    const text = good ? `t ${chosen.join(" · ")}\nσ ${chosen.map((t) => written(SIGMAS[t])).join(" · ")} · 0` : chosen
    says.textContent = text
    says.title = good ? `${text}\n(σ of Stable Diffusion's noise schedule)` : text
    says.classList.toggle("velatura-wrong", !good && !wired.length)
    chart.setAttribute("aria-label", good ? `Timesteps ${chosen.join(", ")}` : chosen)
    chart.replaceChildren(picture(width, height, typeof all === "string" ? [] : all, good ? chosen : []))
  }

  for (const name of INPUTS) {
    const widget = node.widgets?.find((each) => each.name === name)
    if (widget) chain(widget, "callback", draw)
  }
  for (const name of ["onConfigure", "onConnectionsChange"]) chain(node, name, () => void queueMicrotask(draw))
  const sized = new ResizeObserver(draw)
  sized.observe(chart)
  // Values also change unseen: by a primitive, by undo, by other scripts.
  const timer = setInterval(draw, 500)
  panel.signal.addEventListener("abort", () => {
    sized.disconnect()
    clearInterval(timer)
  })
  return {}
}

/**
 * Noise over time, sampling from left to right: the curve of log sigma, the distilled timesteps, the chosen ones.
 * @param {number} width @param {number} height @param {number[]} all @param {number[]} chosen
 */
function picture(width, height, all, chosen) {
  const across = (/** @type {number} */ t) => SIDE + (1 - t / (COUNT - 1)) * (width - 2 * SIDE)
  const share = (/** @type {number} */ t) => (Math.log(SIGMAS[t]) - LOW) / (HIGH - LOW)
  const down = (/** @type {number} */ t) => TOP + (1 - share(t)) * (height - TOP - BOTTOM)
  const at = (/** @type {number} */ t) => `${across(t).toFixed(1)} ${down(t).toFixed(1)}`
  const marks = Array.from({ length: 101 }, (_, k) => Math.round((k * (COUNT - 1)) / 100))
  const drawing = svg("svg", { width, height, "aria-hidden": "true" })
  drawing.append(svg("path", { class: "velatura-grid", d: `M${marks.map(at).join("L")}` }))
  const ticks = all.map((t) => `M${across(t).toFixed(1)} ${height - BOTTOM}v4`).join("")
  drawing.append(svg("path", { class: "velatura-grid", d: ticks || "M0 0" }))
  for (const t of chosen) {
    drawing.append(svg("path", { class: "velatura-stem", d: `M${at(t)}V${height - BOTTOM + 4}` }))
    drawing.append(svg("circle", { class: "velatura-dot", cx: across(t), cy: down(t), r: 3.5 }))
  }
  return drawing
}
