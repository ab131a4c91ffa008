// SPDX-License-Identifier: Apache-2.0

import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;

/** An echo server: one thread, one selector. Arguments: address, port. */
public class Echo {
    public static void main(String[] args) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel server = ServerSocketChannel.open();
        server.bind(new InetSocketAddress(args[0], Integer.parseInt(args[1])));
        server.configureBlocking(false);
        server.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel conn = server.accept();
                    conn.configureBlocking(false);
                    conn.register(selector, SelectionKey.OP_READ, ByteBuffer.allocateDirect(65536));
                } else {
                    echo(key);
                }
            }
            selector.selectedKeys().clear();
        }
    }

    /** Reads while there is room, writes what there is, and asks for what it waits for. */
    private static void echo(SelectionKey key) throws IOException {
        SocketChannel conn = (SocketChannel) key.channel();
        ByteBuffer buffer = (ByteBuffer) key.attachment();
        if (key.isReadable() && conn.read(buffer) < 0) {
            conn.close();
            return;
        }
        buffer.flip();
        conn.write(buffer);
        buffer.compact();
        int write = buffer.position() > 0 ? SelectionKey.OP_WRITE : 0;
        int read = buffer.hasRemaining() ? SelectionKey.OP_READ : 0;
        key.interestOps(read | write);
    }
}
