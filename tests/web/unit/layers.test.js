import { beforeEach, expect, test, vi } from "vitest"
import { addLayers } from "../../../web/widgets/layers.js"
import { asOwned, exchange, ownersOf } from "../../../web/widgets/layers_chain.js"
import { colourText } from "../../../web/widgets/layers_draw.js"
import { browser, node, press } from "./stand_in.js"

beforeEach(() => {
  document.body.replaceChildren()
  HTMLCanvasElement.prototype.getContext = () => null
  Image.prototype.decode = vi.fn(async () => {})
})

const INPUTS = ["image", "layers", "mask"]

/** A node of a chain, with wires as the frontend has them. */
function composite(values, below) {
  const wires = new Map()
  const made = {
    ...node({ name: "layer", opacity: 1, x: 0, y: 0, blend: "normal", ...values }),
    comfyClass: "VelaturaCompositeLayers",
    graph: { id: "root" },
    inputs: INPUTS.map((name) => ({ name, link: null })),
    wires,
    getInputNode: (slot) => wires.get(slot)?.source ?? null,
    getInputLink: (slot) => (wires.has(slot) ? { origin_slot: wires.get(slot).from } : null),
    disconnectInput: (slot) => wires.delete(slot),
    connect: (from, to, slot) => to.wires.set(slot, { source: made, from }),
  }
  if (below) wires.set(1, { source: below, from: 0 })
  return made
}
const other = (comfyClass) => Object.assign(composite(), { comfyClass })
const value = (owner, name) => owner.widgets.find((each) => each.name === name).value
const file = (filename) => ({ filename, subfolder: "", type: "temp" })
const layer = (name, more = {}) => ({ name, x: 0, y: 0, opacity: 1, blend: "normal", image: file(name), ...more })
const nodes = (owners) => owners.map((owner) => owner?.node ?? null)

test("each layer is its node's", () => {
  const ground = composite()
  const ball = composite({}, ground)
  const leaf = composite({}, ball)
  expect(nodes(ownersOf(leaf, 3))).toEqual([ground, ball, leaf])
})

test("layers that a node makes by itself have no owner, those on top of them have", () => {
  const made = other("VelaturaJointLayers")
  const leaf = composite({}, composite({}, made))
  const owners = nodes(ownersOf(leaf, 4))
  expect(owners.slice(0, 2)).toEqual([null, null])
  expect(owners[3]).toBe(leaf)
})

test("a chain that is not the one that ran owns nothing", () => {
  const leaf = composite({}, composite())
  expect(nodes(ownersOf(leaf, 3))).toEqual([null, null, null])
  expect(nodes(ownersOf(leaf, 1))).toEqual([null])
  expect(nodes(ownersOf(composite({}, other("Anything")), 1))).toEqual([null])
})

test("what is bypassed, and what only carries a wire, is no layer", () => {
  const ground = composite()
  const off = { ...composite({}, ground), mode: 4 }
  off.getInputNode = (slot) => (slot === 1 ? ground : null)
  const reroute = { ...other("Reroute"), getInputNode: (slot) => (slot === 0 ? off : null) }
  const leaf = composite({}, reroute)
  expect(nodes(ownersOf(leaf, 2))).toEqual([ground, leaf])
})

test("a layer is as its owner's values are, except for those that come by a wire", () => {
  const leaf = composite({ x: 7, opacity: 0.5, name: "new" })
  leaf.inputs.push({ name: "y", link: 3, widget: { name: "y" } })
  const [owner] = ownersOf(leaf, 1)
  expect(asOwned(layer("old", { y: 4 }), owner)).toMatchObject({ name: "new", x: 7, y: 4, opacity: 0.5 })
  expect(owner.widgets.y).toBe(undefined)
  expect(asOwned(layer("old"), null)).toEqual(layer("old"))
})

test("two nodes change places with pictures, masks and values, and the chain stays", () => {
  const [red, blue, mask] = [other("LoadImage"), other("LoadImage"), other("SolidMask")]
  const ground = composite({ name: "ground", x: 1 })
  const leaf = composite({ name: "leaf", x: 9, blend: "add" }, ground)
  red.connect(0, ground, 0)
  blue.connect(2, leaf, 0)
  mask.connect(1, leaf, 2)
  exchange(ownersOf(leaf, 2), 0)()
  expect([ground.wires.get(0), leaf.wires.get(0)]).toEqual([{ source: blue, from: 2 }, { source: red, from: 0 }])
  expect([ground.wires.get(2), leaf.wires.get(2)]).toEqual([{ source: mask, from: 1 }, undefined])
  expect(leaf.wires.get(1).source).toBe(ground)
  expect([value(ground, "name"), value(ground, "x"), value(ground, "blend")]).toEqual(["leaf", 9, "add"])
  expect([value(leaf, "name"), value(leaf, "x"), value(leaf, "blend")]).toEqual(["ground", 1, "normal"])
})

/** A node that draws its own layer, `place` layers from below. */
const drawn = (below, place = -1, name = "drawn") => {
  const made = Object.assign(composite({ name }, below), { comfyClass: "VelaturaLayerStack" })
  made.widgets.push({ name: "place", value: place })
  return made
}

test("a layer that was drawn below others lies there", () => {
  const ground = composite()
  const tree = drawn(ground)
  const bush = drawn(tree, 1)
  const leaf = composite({}, bush)
  expect(nodes(ownersOf(leaf, 4))).toEqual([ground, bush, tree, leaf])
  bush.inputs.push({ name: "place", link: 3, widget: { name: "place" } })
  expect(nodes(ownersOf(leaf, 4))).toEqual([null, null, null, null])
})

test("of two layers that change places the later one is placed, by what was there before it", () => {
  const joint = other("VelaturaJointLayers")
  const tree = drawn(joint, -1, "tree")
  const bush = drawn(tree, -1, "bush")
  const sun = drawn(bush, 0, "sun")
  const names = () => ownersOf(sun, 5).map((owner) => owner && value(owner.node, "name"))
  expect(names()).toEqual(["sun", null, null, "tree", "bush"])
  exchange(ownersOf(sun, 5), 3)()
  expect([value(bush, "place"), ...names()]).toEqual([2, "sun", null, null, "bush", "tree"])
  exchange(ownersOf(sun, 5), 3)()
  expect([value(bush, "place"), ...names()]).toEqual([-1, "sun", null, null, "tree", "bush"])
  expect(exchange(ownersOf(sun, 5), 0)).toBe(null) // nobody's
  const leaf = composite({ name: "leaf" }, sun)
  expect(exchange(ownersOf(leaf, 6), 4)).toBe(null) // what is put on top stays there
})

test("colours in words", () => {
  expect([[255, 0, 10, 255], [1, 2, 3, 128], [9, 9, 9, 0]].map(colourText)).toEqual(["#ff000a", "#010203 at 50 %", "transparent"])
})

test("the viewer lists the topmost first, and its opacity and keys reach the nodes", () => {
  const ground = composite({ name: "ground" })
  const leaf = composite({ name: "leaf", x: 3, y: 4 }, ground)
  const { show } = addLayers(browser(), leaf)
  show({ images: [] })
  expect(document.querySelector(".velatura-list").children).toHaveLength(0)
  show({ velatura_layers: [{ width: 64, height: 48, layers: [layer("ground"), layer("leaf", { x: 3, y: 4 })] }] })
  const rows = [...document.querySelectorAll(".velatura-layer")]
  expect(rows.map((each) => each.textContent)).toEqual(["leaf", "ground"])
  rows[0].click()
  expect(rows[0].getAttribute("aria-pressed")).toBe("true")
  const keys = document.querySelector(".velatura-keys")
  press(keys, "ArrowRight")
  press(keys, "ArrowUp")
  expect([value(leaf, "x"), value(leaf, "y"), value(ground, "x")]).toEqual([4, 3, 0])
  press(keys, "PageDown")
  press(keys, "ArrowLeft")
  expect([value(leaf, "x"), value(ground, "x")]).toEqual([4, -1])
  press(document.querySelector("[aria-label='Opacity of leaf']"), "PageDown")
  expect([value(leaf, "opacity"), value(ground, "opacity")]).toEqual([0.9, 1])
  leaf.onRemoved()
})
