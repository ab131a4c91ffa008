# SPDX-License-Identifier: Apache-2.0
# Lines, sent back. Arguments: server ADDRESS PORT, or client ADDRESS PORT ROUNDS.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;

my ($kind, $address, $port, $rounds) = @ARGV;

if ($kind eq 'server') {
	my $server = IO::Socket::INET->new(
		LocalAddr => $address, LocalPort => $port, Listen => 16, ReuseAddr => 1) or die "listen: $!";
	my $select = IO::Select->new($server);
	while (my @ready = $select->can_read) {
		for my $ready (@ready) {
			if ($ready == $server) {
				$select->add($server->accept);
			} elsif (!sysread($ready, my $piece, 65536)) {
				$select->remove($ready);
				close $ready;
			} else {
				for (my $done = 0; $done < length $piece;) {
					$done += syswrite($ready, $piece, length($piece) - $done, $done) // die "write: $!";
				}
			}
		}
	}
}

my $conn = IO::Socket::INET->new(PeerAddr => $address, PeerPort => $port) or die "connect: $!";
$conn->autoflush(1);
for my $i (1 .. $rounds) {
	my $line = $i . 'x' x int(rand 3000) . "\n";
	print $conn $line or die "print: $!";
	my $answer = <$conn>;
	die "line $i came back as another" if !defined $answer || $answer ne $line;
}
