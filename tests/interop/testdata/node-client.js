// SPDX-License-Identifier: Apache-2.0
// Sends bodies on connections that are kept, and compares what comes back.
// Arguments: address, port, connections, rounds.
const http = require('http');
const crypto = require('crypto');
const [host, port, connections, rounds] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: +connections });

function post(body) {
	return new Promise((resolve, reject) => {
		const request = http.request({ host, port, agent, method: 'POST' }, (response) => {
			const pieces = [];
			response.on('data', (piece) => pieces.push(piece));
			response.on('error', reject);
			response.on('end', () => resolve(Buffer.concat(pieces)));
		});
		request.on('error', reject);
		request.end(body);
	});
}

async function talk() {
	for (let i = 0; i < rounds; i++) {
		const body = crypto.randomBytes(1 + crypto.randomInt(i % 20 === 19 ? 1000000 : 5000));
		if (!body.equals(await post(body)))
			throw new Error('another body came back');
	}
}

Promise.all(Array.from({ length: +connections }, talk))
	.then(() => agent.destroy())
	.catch((error) => { console.error(error); process.exit(1); });
