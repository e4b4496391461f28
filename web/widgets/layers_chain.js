/** Which node a layer of a stack came from, found by walking the graph upstream. */

/** @typedef {{ name: string, x: number, y: number, opacity: number, blend: string, image: ComfyFile }} Layer */
/** @typedef {{ node: ComfyNode, widgets: Record<string, ComfyWidget | undefined> }} Owner a layer's own values */

const CHAINED = "VelaturaCompositeLayers"
const BYPASSED = 4
const VALUES = ["name", "x", "y", "opacity", "blend"]

/**
 * The owner of each layer, the lowest first; null where none is known. A chain that has been changed since it ran, and
 * does not fit the layers any more, owns nothing.
 * @param {ComfyNode} node that put the last layer on top @param {number} count of the layers
 * @returns {(Owner | null)[]}
 */
export function ownersOf(node, count) {
  /** @type {(Owner | null)[]} */
  const owners = []
  /** @type {ComfyNode | null} */
  let at = node
  const seen = new Set()
  while (at && !seen.has(at) && (at.comfyClass === CHAINED || at.comfyClass === "Reroute")) {
    seen.add(at)
    if (at.comfyClass === CHAINED && at.mode !== BYPASSED) owners.unshift({ node: at, widgets: valuesOf(at) })
    at = above(at, at.comfyClass === CHAINED ? "layers" : "")
  }
  // Whatever else made layers below made them all by itself.
  const unknown = count - owners.length
  if (unknown < 0 || (unknown > 0 && !at) || (unknown === 0 && at)) return Array.from({ length: count }, () => null)
  return [...Array.from({ length: unknown }, () => null), ...owners]
}

/** @param {ComfyNode} node */
function valuesOf(node) {
  return Object.fromEntries(VALUES.map((name) => [name, node.widgets?.find((each) => each.name === name && !wired(node, name))]))
}

/** @param {ComfyNode} node @param {string} name */
function wired(node, name) {
  return node.inputs?.some((each) => each.widget?.name === name && each.link != null) ?? false
}

/** @param {ComfyNode} node @param {string} input its name; "" for the first @returns {ComfyNode | null} */
function above(node, input) {
  const slot = input ? (node.inputs?.findIndex((each) => each.name === input) ?? -1) : 0
  return slot < 0 || !node.graph ? null : (node.getInputNode?.(slot) ?? null)
}

/**
 * The layer as its owner's values now have it.
 * @param {Layer} layer @param {Owner | null} owner @returns {Layer}
 */
export function asOwned(layer, owner) {
  const now = { ...layer }
  for (const name of VALUES) {
    const value = owner?.widgets[name]?.value
    if (typeof value === typeof layer[/** @type {keyof Layer} */ (name)]) Object.assign(now, { [name]: value })
  }
  return now
}

/**
 * Let two nodes of a chain change places: their pictures and their values do, the wires between them stay.
 * @param {Owner} a @param {Owner} b
 */
export function swap(a, b) {
  for (const name of ["image", "mask"]) {
    const [first, second] = [a, b].map(({ node }) => {
      const slot = node.inputs?.findIndex((each) => each.name === name) ?? -1
      return { node, slot, source: slot < 0 ? null : (node.getInputNode?.(slot) ?? null), link: node.getInputLink?.(slot) }
    })
    rewire(first, second)
    rewire(second, first)
  }
  for (const name of VALUES) {
    const [one, other] = [a.widgets[name], b.widgets[name]]
    if (!one || !other) continue
    const value = one.value
    put(one, other.value)
    put(other, value)
  }
}

/** @typedef {{ node: ComfyNode, slot: number, source: ComfyNode | null, link: { origin_slot: number } | null | undefined }} End */

/** @param {End} to @param {End} from */
function rewire(to, from) {
  if (to.slot < 0) return
  if (from.source && from.link) from.source.connect?.(from.link.origin_slot, to.node, to.slot)
  else to.node.disconnectInput?.(to.slot)
}

/** @param {ComfyWidget | undefined} widget @param {unknown} value */
export function put(widget, value) {
  if (!widget) return
  widget.value = value
  widget.callback?.(value)
}
