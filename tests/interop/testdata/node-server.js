// SPDX-License-Identifier: Apache-2.0
// Sends every request's body back. Arguments: address, port.
const http = require('http');
const [address, port] = process.argv.slice(2);

http.createServer((request, response) => {
	response.setHeader('X-Method', request.method);
	request.pipe(response);
}).listen(port, address);
