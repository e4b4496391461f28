/** Building elements. */

const SVG = "http://www.w3.org/2000/svg"

/**
 * An HTML element. Attributes that are false, null or undefined are left out.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {Record<string, any>} [attributes] @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  set(element, attributes)
  element.append(...children)
  return element
}

/**
 * An SVG element.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {(Node | string)[]} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = /** @type {SVGElement} */ (document.createElementNS(SVG, tag))
  set(element, attributes)
  element.append(...children)
  return element
}

/** @param {Element} element @param {Record<string, any>} attributes */
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) element.setAttribute(name, value === true ? "" : String(value))
  }
}

/**
 * A button of ours: `name` is what it is called where its sign says too little.
 * @param {string} sign @param {string} name @param {() => void} press
 */
export function button(sign, name, press) {
  const element = el("button", { type: "button", class: "velatura-button", "aria-label": name, title: name }, sign)
  element.addEventListener("click", press)
  return element
}
