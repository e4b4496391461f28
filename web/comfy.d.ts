/** As much of ComfyUI's frontend as the widgets use. */

interface ComfyFile {
  filename: string
  subfolder: string
  type: string
}

interface ComfyWidget {
  name: string
  value: unknown
  serialize?: boolean
  callback?: (...given: any[]) => unknown
}

interface ComfyInput {
  name?: string
  link: number | null
  widget?: { name: string }
}

interface ComfyGraph {
  id: string
  isRootGraph?: boolean
  getNodeById(id: string): ComfyNode | null
}

interface ComfyNode {
  id: number | string
  comfyClass?: string
  graph: ComfyGraph | null
  subgraph?: ComfyGraph
  widgets?: ComfyWidget[]
  inputs?: ComfyInput[]
  size: [number, number]
  onExecuted?: (output: Record<string, any>) => void
  onRemoved?: () => void
  onConfigure?: (saved: object) => void
  onConnectionsChange?: (...given: any[]) => void
  mode?: number
  getInputNode?(slot: number): ComfyNode | null
  getInputLink?(slot: number): { origin_slot: number } | null
  connect?(slot: number, to: ComfyNode, input: number): unknown
  disconnectInput?(slot: number): unknown
  setDirtyCanvas(front: boolean, back: boolean): void
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): ComfyWidget
}

interface ComfyApi extends EventTarget {
  apiURL(route: string): string
}

interface ComfyApp {
  graph: ComfyGraph
  rootGraph?: ComfyGraph
  canvas?: { canvas: HTMLCanvasElement; emitBeforeChange?(): void; emitAfterChange?(): void }
  nodeOutputs?: Record<string, Record<string, any>>
  registerExtension(extension: object): void
}

interface Browser {
  app: ComfyApp
  api: ComfyApi
}

declare module "*/scripts/app.js" {
  export const app: ComfyApp
}

declare module "*/scripts/api.js" {
  export const api: ComfyApi
}
