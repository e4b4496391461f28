export default { test: { environment: "jsdom", include: ["tests/web/unit/*.test.js"] } }
