import { expect, test } from "vitest"
import { SIGMAS, timesteps } from "../../../web/widgets/lcm.js"

const usual = { steps: 4, denoise: 1, original_steps: 50, grid: "paper" }

test("the grids that the tooltip promises", () => {
  expect(timesteps(usual)).toEqual([999, 759, 519, 279])
  expect(timesteps({ ...usual, grid: "diffusers" })).toEqual([999, 759, 499, 259])
})

test("what cannot be sampled says which value is wrong", () => {
  expect(timesteps({ ...usual, original_steps: 30 })).toMatch(/^original_steps: .*divisor of 1000, got 30/)
  expect(timesteps({ ...usual, steps: 51 })).toMatch(/^steps: expected 1 to 50/)
  expect(timesteps({ ...usual, denoise: 0.01, steps: 1 })).toMatch(/^steps: /)
  expect(timesteps({ ...usual, original_steps: undefined })).toMatch(/^original_steps/)
})

test("Stable Diffusion's noise levels, as ComfyUI has them", () => {
  expect(SIGMAS[999]).toBeCloseTo(14.6146, 3)
  expect(SIGMAS[0]).toBeCloseTo(0.02917, 4)
})
