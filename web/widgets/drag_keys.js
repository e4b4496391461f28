/** All of the drag editor from the keyboard. */

import { inside, nextEnd, withArrow, withEnd } from "./drag_value.js"

/** @typedef {import("./drag_value.js").Place} Place */

/**
 * @typedef {object} Board
 * @property {(dx: number, dy: number) => void} pan in pixels of the stage
 * @property {(factor: number) => void} zoom
 * @property {() => void} fit
 * @property {(arrow: number) => void} remove
 * @property {() => void} dab one touch of the brush, where it is
 * @property {() => void} abort the gesture that goes on
 * @property {(held: boolean) => void} hold whether dragging moves the picture
 * @property {() => Place} place where the brush is, or the middle
 * @property {(place: Place) => void} point the brush there
 */

/**
 * @param {HTMLElement} keys what has the focus @param {import("./drag_board.js").Editor} editor @param {Board} board
 */
export function listenToKeys(keys, editor, board) {
  /** @param {number} dx @param {number} dy */
  function nudge(dx, dy) {
    const size = editor.size()
    const { selected } = editor
    if (!size) return
    if (editor.tool !== "arrows") {
      const [x, y] = board.place()
      board.point(inside([x + dx, y + dy], size))
    } else if (selected) {
      const [x, y] = editor.drawing().points[selected.arrow][selected.end]
      const next = withEnd(editor.drawing(), selected, inside([x + dx, y + dy], size))
      editor.change(next, `nudge ${selected.arrow} ${selected.end}`)
    } else board.pan(-4 * dx, -4 * dy)
  }

  function add() {
    const size = editor.size()
    if (!size) return
    editor.tool = "arrows"
    const [x, y] = inside(board.place(), size).map(Math.round)
    editor.selected = { arrow: editor.drawing().points.length, end: "to" }
    editor.change(withArrow(editor.drawing(), { from: [x, y], to: inside([x + Math.round(size[0] / 10), y], size) }))
  }

  /** @param {1 | -1} by */
  function choose(by) {
    editor.tool = "arrows"
    editor.selected = nextEnd(editor.drawing(), editor.selected, by)
    editor.tell()
  }

  function remove() {
    if (editor.selected) board.remove(editor.selected.arrow)
  }

  function escape() {
    board.abort()
    editor.selected = null
    editor.tell()
  }

  /** @type {Record<string, () => void>} */
  const actions = {
    ArrowLeft: () => nudge(-1, 0),
    ArrowRight: () => nudge(1, 0),
    ArrowUp: () => nudge(0, -1),
    ArrowDown: () => nudge(0, 1),
    "Shift+ArrowLeft": () => nudge(-10, 0),
    "Shift+ArrowRight": () => nudge(10, 0),
    "Shift+ArrowUp": () => nudge(0, -10),
    "Shift+ArrowDown": () => nudge(0, 10),
    PageDown: () => choose(1),
    PageUp: () => choose(-1),
    n: add,
    Insert: add,
    Delete: remove,
    Backspace: remove,
    Escape: escape,
    Enter: board.dab,
    " ": () => board.hold(true),
    "+": () => board.zoom(1.25),
    "=": () => board.zoom(1.25),
    "-": () => board.zoom(0.8),
    0: board.fit,
    ...editor.keys,
  }
  keys.addEventListener("keydown", (event) => {
    const held = `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}`
    // A capital letter has its shift in it, and so has "+" on some keyboards.
    const shift = event.shiftKey && (held || event.key.length > 1) ? "Shift+" : ""
    const act = actions[held + shift + (held ? event.key.toLowerCase() : event.key)]
    if (!act) return
    event.preventDefault()
    event.stopPropagation()
    act()
  })
  keys.addEventListener("keyup", (event) => {
    if (event.key === " ") board.hold(false)
    event.preventDefault() // the button would be clicked
  })
  keys.addEventListener("blur", () => board.hold(false))
}
