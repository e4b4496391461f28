/** Which node a layer of a stack came from, found by walking the graph upstream. */

/** @typedef {{ name: string, x: number, y: number, opacity: number, blend: string, image: ComfyFile }} Layer */
/**
 * @typedef {object} Owner
 * @property {ComfyNode} node
 * @property {Record<string, ComfyWidget | undefined>} widgets the layer's own values
 * @property {number} rank which node of the chain it is, from below
 */

const ADDING = ["VelaturaCompositeLayers", "VelaturaLayerStack"]
const BYPASSED = 4
const VALUES = ["name", "x", "y", "opacity", "blend"]

/**
 * The owner of each layer, the lowest first; null where none is known. A chain that has been changed since it ran, and
 * does not fit the layers any more, owns nothing.
 * @param {ComfyNode} node that added the last layer @param {number} count of the layers
 * @returns {(Owner | null)[]}
 */
export function ownersOf(node, count) {
  /** @type {ComfyNode[]} */
  const chain = []
  /** @type {ComfyNode | null} */
  let at = node
  const seen = new Set()
  while (at && !seen.has(at) && [...ADDING, "Reroute"].includes(at.comfyClass ?? "")) {
    seen.add(at)
    const adds = at.comfyClass !== "Reroute"
    if (adds && at.mode !== BYPASSED) chain.unshift(at)
    at = above(at, adds ? "layers" : "")
  }
  const nobody = Array.from({ length: count }, () => null)
  // Whatever else made layers below made them all by itself.
  const unknown = count - chain.length
  if (unknown < 0 || (unknown > 0 && !at) || (unknown === 0 && at)) return nobody
  /** @type {(Owner | null)[]} */
  const owners = nobody.slice(0, unknown)
  for (const [rank, each] of chain.entries()) {
    if (wired(each, "place")) return nobody
    const place = Number(each.widgets?.find(({ name }) => name === "place")?.value ?? -1)
    owners.splice(place < 0 ? owners.length : place, 0, { node: each, widgets: valuesOf(each), rank })
  }
  return owners
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
 * Let a layer and the one above it change places; null if that cannot be done. Nodes that are given their pictures
 * exchange them, and their values. One that draws its own is placed elsewhere, which only the later one can be.
 * @param {(Owner | null)[]} owners @param {number} k the lower of the two
 * @returns {(() => void) | null}
 */
export function exchange(owners, k) {
  const [one, other] = [owners[k], owners[k + 1]]
  if (!one || !other) return null
  if (one.node.comfyClass === ADDING[0] && other.node.comfyClass === ADDING[0]) return () => swap(one, other)
  const later = one.rank > other.rank ? one : other
  const place = later.node.widgets?.find(({ name }) => name === "place")
  if (!place) return null
  const earlier = owners.filter((each) => (each?.rank ?? -1) < later.rank)
  const below = earlier.indexOf(later === one ? other : one) + (later === one ? 1 : 0)
  return () => put(place, below === earlier.length ? -1 : below)
}

/**
 * The pictures and the values of two nodes change places, the wires between them stay.
 * @param {Owner} a @param {Owner} b
 */
function swap(a, b) {
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
