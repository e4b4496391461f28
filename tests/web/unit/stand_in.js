/** A node and a frontend, as much of them as widgets touch; and what jsdom does not have. */

globalThis.PointerEvent ??= class extends MouseEvent {
  constructor(name, { pointerId, ...rest }) {
    super(name, rest)
    this.pointerId = pointerId
  }
}
globalThis.ResizeObserver ??= class {
  observe() {}
  disconnect() {}
}
HTMLElement.prototype.setPointerCapture ??= () => {}

export function browser(parts = {}) {
  const app = { graph: { id: "root", getNodeById: () => null }, nodeOutputs: {}, ...parts }
  return { app, api: { apiURL: (route) => `/api${route}` } }
}

export function node(values = {}) {
  const widgets = Object.entries(values).map(([name, value]) => ({ name, value }))
  return {
    id: 7,
    graph: null,
    widgets,
    inputs: [],
    size: [300, 200],
    setDirtyCanvas() {},
    addDOMWidget(name, type, element, options) {
      const widget = { name, type, element, options, value: "" }
      widgets.push(widget)
      document.body.append(element)
      return widget
    },
  }
}

export function press(element, key) {
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }))
}
