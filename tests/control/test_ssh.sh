#!/bin/sh
# test_control over ssh: a real ssh with a real sshd behind it, which the test starts for each connection, as this user, with
# keys of its own. Speaks cmocka's lines, as tests/run wants.
set -u
build=${BUILD:?}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
ssh-keygen -q -t ed25519 -N '' -f "$dir/host" && ssh-keygen -q -t ed25519 -N '' -f "$dir/user" || exit 1
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
cp "$dir/user.pub" "$dir/authorized"
cat >"$dir/sshd" <<CONFIG
HostKey $dir/host
AuthorizedKeysFile $dir/authorized
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
CONFIG
cat >"$dir/ssh" <<CONFIG
ProxyCommand /usr/sbin/sshd -i -f $dir/sshd
IdentityFile $dir/user
IdentitiesOnly yes
UserKnownHostsFile $dir/known
StrictHostKeyChecking accept-new
LogLevel ERROR
CONFIG
export GANG_TEST_LAUNCHER=ssh GANG_TEST_NODES="first second" GANG_TEST_SSH_CONFIG="$dir/ssh"
"$build/test_control"
