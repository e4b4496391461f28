/** The picture that a node works on, where it is known before the graph has run. */

import { address } from "./pictures.js"

/**
 * The address of the picture of a Load Image node that is directly connected; null if there is none.
 * @param {Browser} browser @param {ComfyNode} node @param {string} input
 */
export function loadedAbove({ api }, node, input) {
  const slot = node.inputs?.findIndex((each) => each.name === input) ?? -1
  // A node that is being made is in no graph, where asking what it is connected to is an error.
  const above = slot < 0 || !node.graph ? null : node.getInputNode?.(slot)
  if (above?.comfyClass !== "LoadImage") return null
  const value = above.widgets?.find((each) => each.name === "image")?.value
  return typeof value === "string" && value ? address(api, fileOf(value)) : null
}

/**
 * A file by the name that Load Image has for it: "folder/name.png [output]".
 * @param {string} name @returns {ComfyFile}
 */
export function fileOf(name) {
  const [, path, type] = /** @type {RegExpExecArray} */ (/^(.*?)(?: \[(input|output|temp)\])?$/s.exec(name))
  const cut = path.lastIndexOf("/")
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type: type ?? "input" }
}
