// Serves, asks itself, and starts itself again.
const { fork } = require('child_process');
const crypto = require('crypto');
const express = require('express');
const zlib = require('zlib');

if (process.argv[2] === 'child') {
    process.send('from the child of ' + process.version);
    process.exit(0);
}
console.log('executable', process.execPath);
console.log('digest', crypto.createHash('sha256').update('kitbag').digest('hex'));
console.log('back', zlib.brotliDecompressSync(zlib.brotliCompressSync('there and back')).toString());
const app = express();
app.get('/', (_, response) => response.send('a page by Express'));
const server = app.listen(0, '127.0.0.1', async () => {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`);
    console.log('served', await answer.text());
    server.close();
    const child = fork(__filename, ['child']);
    child.on('message', (message) => console.log('message', message));
    child.on('exit', () => {
        console.log('waiting');
        process.stdin.resume();
    });
});
