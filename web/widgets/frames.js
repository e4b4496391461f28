/** The frames of a film, to play and to leaf through. */

import { button, el } from "./dom.js"
import { addPanel } from "./panel.js"
import { address, picture } from "./pictures.js"
import { slider } from "./pointer.js"

const EMPTY = 20
const HEIGHT = 240
const PER_SECOND = 12
const AHEAD = 24

/** @param {Browser} browser @param {ComfyNode} node */
export function addFrames(browser, node) {
  const panel = addPanel(browser, node, {
    name: "velatura_frames",
    type: "VELATURA_FRAMES",
    label: "Frames",
    height: EMPTY,
  })
  const canvas = el("canvas", { role: "img" })
  const frame = el("div", { class: "velatura-frame" }, canvas)
  const stage = el("div", { class: "velatura-stage", hidden: true }, frame)
  const handle = el("div", { class: "velatura-track velatura-sideways" }, el("div", { class: "velatura-thumb" }))
  const play = button("▶", "Play", () => (timer ? stop() : start()))
  const count = el("span", { class: "velatura-number" })
  const row = el("div", { class: "velatura-row", hidden: true }, play, handle, count)
  const empty = el("div", { class: "velatura-hint" }, "Run the graph to leaf through its frames here.")
  panel.element.append(empty, stage, row)

  /** @type {ComfyFile[]} */
  let files = []
  /** @type {(Promise<HTMLImageElement> | undefined)[]} */
  let pictures = []
  let at = 0
  /** @type {ReturnType<typeof setInterval> | undefined} */
  let timer = undefined

  const scrub = slider(handle, {
    label: "Frame",
    high: 0,
    step: 1,
    text: (value) => `frame ${value + 1} of ${files.length}`,
    changed: (value) => void draw(value),
  })
  // By hand: whoever takes hold of it wants it to stay where it is put.
  for (const name of ["pointerdown", "keydown"]) handle.addEventListener(name, stop)
  panel.signal.addEventListener("abort", stop)

  /** @param {number} number */
  function load(number) {
    return (pictures[number] ??= picture(address(browser.api, files[number])))
  }

  /** @param {number} wanted */
  async function draw(wanted) {
    at = wanted
    const film = files
    if (!film.length) return
    handle.style.setProperty("--at", `${(100 * at) / Math.max(1, film.length - 1)}%`)
    count.textContent = `${at + 1} / ${film.length}`
    canvas.setAttribute("aria-label", `Frame ${at + 1} of ${film.length}`)
    for (let next = 1; next <= AHEAD; next++) load((at + next) % film.length).catch(() => {})
    const image = await load(wanted).catch(() => null)
    if (!image || at !== wanted || film !== files) return // another one is wanted by now
    if (canvas.width !== image.naturalWidth || canvas.height !== image.naturalHeight) {
      canvas.width = image.naturalWidth
      canvas.height = image.naturalHeight
      frame.style.setProperty("--ratio", String(image.naturalWidth / image.naturalHeight))
    }
    canvas.getContext("2d")?.drawImage(image, 0, 0)
  }

  function start() {
    if (files.length < 2) return
    timer = setInterval(() => scrub.set((at + 1) % files.length), 1000 / PER_SECOND)
    sign("❚❚", "Pause")
  }

  function stop() {
    clearInterval(timer)
    timer = undefined
    sign("▶", "Play")
  }

  /** @param {string} text @param {string} name */
  function sign(text, name) {
    play.textContent = text
    play.title = name
    play.setAttribute("aria-label", name)
  }

  return {
    /** @param {Record<string, any>} output */
    show(output) {
      const given = output?.velatura_frames?.[0]?.frames
      if (!given?.length) return
      files = given
      pictures = []
      at = Math.min(at, files.length - 1)
      empty.hidden = true
      stage.hidden = row.hidden = false
      panel.resize(HEIGHT)
      scrub.reach(files.length - 1)
      scrub.set(at)
    },
  }
}
