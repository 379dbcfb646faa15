-- POSTs the bodies of a file, one per line, in turn, and prints what wrk measured as one line of JSON.
-- wrk -s wrk.lua URL -- BODIES

local requests = {}
local turn = 0

function init(args)
    for line in io.lines(args[1]) do
        local headers = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer bench" }
        requests[#requests + 1] = wrk.format("POST", nil, headers, line)
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\nRESULT {"requests": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
        errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
