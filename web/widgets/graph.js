/** Nodes and what they have shown, by the names that the server and the frontend give them. */

/**
 * A node by its execution id: "5:3" is node 3 inside of the subgraph's instance 5.
 * @param {ComfyApp} app @param {string} id @returns {ComfyNode | null}
 */
export function nodeOf(app, id) {
  /** @type {ComfyGraph | undefined} */
  let graph = app.rootGraph ?? app.graph
  /** @type {ComfyNode | null} */
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? null
    graph = node?.subgraph
  }
  return node
}

/**
 * What a node showed when it last ran in this tab: the frontend keeps it while other workflows are looked at.
 * @param {ComfyApp} app @param {ComfyNode} node @returns {Record<string, any> | undefined}
 */
export function outputOf(app, node) {
  const graph = node.graph
  const root = !graph || graph === (app.rootGraph ?? app.graph)
  return app.nodeOutputs?.[root ? `${node.id}` : `${graph.id}:${node.id}`]
}
