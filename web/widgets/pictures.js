/** Pictures that nodes have left on the server. */

/**
 * @param {ComfyApi} api @param {ComfyFile} file @returns {string}
 */
export function address(api, { filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/**
 * A picture, once it is ready to be drawn.
 * @param {string} from @returns {Promise<HTMLImageElement>}
 */
export async function picture(from) {
  const image = new Image()
  image.src = from
  await image.decode()
  return image
}
