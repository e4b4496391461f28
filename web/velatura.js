/**
 * The entry: puts our widgets on our nodes. The modules in widgets/ only define things, since ComfyUI loads every script
 * below web/, and know the frontend only by what they are given.
 */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addCompare } from "./widgets/compare.js"
import { addCurves } from "./widgets/curves.js"
import { addDrag } from "./widgets/drag.js"
import { addDragLive } from "./widgets/drag_live.js"
import { addFrames } from "./widgets/frames.js"
import { nodeOf, outputOf } from "./widgets/graph.js"
import { addLayers } from "./widgets/layers.js"
import { chain } from "./widgets/panel.js"
import { addSchedule } from "./widgets/schedule.js"

/** @typedef {{ show?: (output: Record<string, any>) => void, hear?: (event: string, data: any) => void }} Listener */

const WITH_VAE = "With a VAE: before and after, once it has run."

/** @type {Record<string, (browser: Browser, node: ComfyNode) => Listener>} */
const WIDGETS = {
  VelaturaCompareImages: (browser, node) => addCompare(browser, node, "Run the graph to lay A over B here."),
  VelaturaReconstruct: (browser, node) => addCompare(browser, node, WITH_VAE),
  VelaturaPromptSwitchEdit: (browser, node) => addCompare(browser, node, WITH_VAE),
  VelaturaMorph: addFrames,
  VelaturaInvert: addCurves,
  VelaturaInvertPair: addCurves,
  VelaturaDistillLcm: addCurves,
  VelaturaFinetuneLcm: addCurves,
  VelaturaTrainSmoothLora: addCurves,
  VelaturaTrainTransparency: addCurves,
  VelaturaTrainLayerLora: addCurves,
  VelaturaTrainSpatial: addCurves,
  VelaturaLcmSchedule: addSchedule,
  VelaturaDragEditor: addDrag,
  VelaturaDrag: addDragLive,
  VelaturaCompositeLayers: addLayers,
  VelaturaLayerStack: addLayers,
}

/** What nodes tell while they run, as `velatura.EVENT`. */
const EVENTS = ["curves", "editor", "drag"]

/** @type {Map<ComfyNode, Listener>} */
const listeners = new Map()

/** Nodes of a workflow that was left and come back to are made anew: show on them what they showed before. */
function showAgain() {
  for (const [node, listener] of listeners) {
    const output = outputOf(app, node)
    if (output) listener.show?.(output)
  }
}

app.registerExtension({
  name: "velatura.widgets",

  setup() {
    const style = document.createElement("link")
    style.rel = "stylesheet"
    style.href = new URL("./velatura.css", import.meta.url).href
    document.head.append(style)
    for (const name of EVENTS) {
      api.addEventListener(`velatura.${name}`, (event) => {
        const { detail } = /** @type {CustomEvent} */ (event)
        const node = nodeOf(app, detail.node)
        if (node) listeners.get(node)?.hear?.(name, detail)
      })
    }
  },

  /** @param {ComfyNode} node */
  nodeCreated(node) {
    const add = WIDGETS[node.comfyClass ?? ""]
    if (!add) return
    const listener = add({ app, api }, node)
    listeners.set(node, listener)
    chain(node, "onExecuted", (output) => listener.show?.(output))
    chain(node, "onRemoved", () => listeners.delete(node))
  },

  // The outputs are restored after this; newer frontends tell when, in the hook below.
  afterConfigureGraph: () => void setTimeout(showAgain),
  afterLoadGraph: showAgain,
})
