-- SPDX-License-Identifier: Apache-2.0
-- For wrk: every answer must be the file that is the first argument.
local threads = {}
bad, good = 0, 0

function setup(thread) table.insert(threads, thread) end

function init(args)
	local file = assert(io.open(args[1], "rb"))
	want = file:read("*all")
	file:close()
end

function response(status, _, body)
	if status == 200 and body == want then good = good + 1 else bad = bad + 1 end
end

function done(summary)
	local good, bad, e = 0, 0, summary.errors
	for _, thread in ipairs(threads) do
		good, bad = good + thread:get("good"), bad + thread:get("bad")
	end
	print(string.format("good %d bad %d", good, bad + e.connect + e.read + e.write + e.status + e.timeout))
end
