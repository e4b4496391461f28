/** The timesteps of few-step sampling, as `lcm_timesteps` of core/consistency.py gives them (LCM, Luo et al. 2023). */

export const COUNT = 1000

/** @typedef {{ steps: number, denoise: number, original_steps: number, grid: string }} Settings */

/**
 * The timesteps that the model was distilled on, as far as `denoise` goes, falling. A string says what is wrong.
 * @param {Settings} settings @returns {number[] | string}
 */
export function distilled({ denoise, original_steps: original }) {
  if (!(original >= 1) || COUNT % original) return `original_steps: expected a divisor of ${COUNT}, got ${original}`
  if (!(denoise > 0 && denoise <= 1)) return `denoise: expected more than 0 and at most 1, got ${denoise}`
  const length = Math.trunc(original * denoise)
  return Array.from({ length }, (_, k) => (length - k) * (COUNT / original) - 1)
}

/**
 * The timesteps of the sampling, falling. A string says what is wrong.
 * @param {Settings} settings @returns {number[] | string}
 */
export function timesteps(settings) {
  const { steps, grid } = settings
  const all = distilled(settings)
  if (typeof all === "string") return all
  if (!(steps >= 1 && steps <= all.length)) return `steps: expected 1 to ${all.length} with these settings, got ${steps}`
  const stride = grid === "paper" ? Math.floor(all.length / steps) : all.length / steps
  return Array.from({ length: steps }, (_, k) => all[Math.floor(k * stride)])
}

/** sigma_t = sqrt((1 - abar_t) / abar_t) of Stable Diffusion's schedule: sqrt(beta) goes straight from start to end. */
export const SIGMAS = (() => {
  const [start, end] = [Math.sqrt(0.00085), Math.sqrt(0.012)]
  let abar = 1
  return Array.from({ length: COUNT }, (_, t) => {
    abar *= 1 - (start + ((end - start) * t) / (COUNT - 1)) ** 2
    return Math.sqrt((1 - abar) / abar)
  })
})()
