#!/bin/sh
# What runs as the only process of the guest: a line "ok NAME" or "FAILED NAME" for each check.
# First with nothing but hfl and busybox, then against the distribution's cryptsetup and e2fsprogs.

export PATH=/bin:/sbin:/usr/sbin:/usr/bin RUST_BACKTRACE=1
busybox mkdir -p /proc /sys /dev /tmp /run /mnt

busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ip link set lo up
cd /tmp
printf 'a key with a newline\n' > key
printf 'another' > wrong
fast="--kdf pbkdf2 --kdf-time 1000"

check() {
    name=$1
    shift
    if "$@" > /run/log 2>&1; then echo "ok $name"; else echo "FAILED $name: $(tail -n 40 /run/log)"; fi
}
refused() {
    name=$1 text=$2
    shift 2
    if "$@" > /run/log 2>&1; then echo "FAILED $name: accepted"; return; fi
    if grep -q "$text" /run/log; then echo "ok $name"; else echo "FAILED $name: $(tail -n 40 /run/log)"; fi
}
# Nothing may be left: no mapping, no loop device, no node, and no key of ours (cryptsetup 2.6 leaves
# its own in the keyring of the loop device's thread).
clean() {
    left="$(ls /sys/block | grep '^dm-')$(cat /sys/block/loop*/loop/backing_file 2>/dev/null)"
    left="$left$(ls /dev/mapper | grep -v control)"
    [ -n "$theirs" ] || left="$left$(grep logon /proc/keys)"
    if [ -z "$left" ]; then echo "ok $1"; else echo "FAILED $1: left: $left"; fi
}
says() { [ "$(cat "$1")" = "$2" ]; }

# --- only whether the binary runs on this CPU, and on which tier ---
case "$(cat /proc/cmdline)" in *hfl.tier=*)
    tier=$(sed 's/.*hfl.tier=\([a-z0-9]*\).*/\1/' /proc/cmdline)
    check step hfl bench --batch 1 --steps 1 --threads 1 --json
    cp /run/log /run/step
    check tier grep -q "\"isa\":\"$tier\"" /run/step
    refused bf16 AVX512-BF16 hfl bench --batch 1 --steps 1 --precision bf16
    echo "end"
    sync
    reboot -f
esac

for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "FAILED insmod $module"; done

# --- only disks of kata's guests, with the numbers of the line that musl/rootfs.sh printed ---
value() { sed "s/.*$1=\([0-9a-f]*\).*/\1/" line; }
attach() {
    data=$(losetup -f) && losetup $data root
    tree=$(losetup -f) && losetup $tree hash
}
holds() {
    check mount-$1 mount -t ext4 -o ro /dev/mapper/root /mnt
    check content-$1 grep -q '10.0.0.5 pccs.example' /mnt/etc/hosts
    check read-$1 dd if=/dev/mapper/root of=/dev/null bs=1M
    umount /mnt
    check close-$1 dmsetup remove --noudevsync root
}
case "$(cat /proc/cmdline)" in *hfl.verity*)
    cd /verity/superblock && attach
    # kata's initramfs before 2026-02.
    check open-initramfs veritysetup open --panic-on-corruption $data root $tree "$(value rootfs_verity.hash)"
    holds initramfs
    cd /verity/no-superblock && attach
    # dm-mod.create of kata's runtime: hypervisor.go of 4.1, GetKernelRootParams.
    sectors=$(($(value data_block_size) / 512 * $(value data_blocks)))
    table="0 $sectors verity 1 $data $tree $(value data_block_size) $(value hash_block_size) $(value data_blocks) 0"
    check open-kernel dmsetup create root --readonly --noudevsync --noudevrules \
        --table "$table sha256 $(value root_hash) $(value salt)"
    holds kernel
    # kata-extension-mount.sh of 4.1, and with one block of data changed.
    for state in extension damaged; do
        check open-$state veritysetup open $data root $tree "$(value root_hash)" --no-superblock \
            --hash-block-size="$(value hash_block_size)" --data-block-size="$(value data_block_size)" \
            --data-blocks="$(value data_blocks)" --salt="$(value salt)"
        [ $state = damaged ] || holds $state
        printf x | dd of=root bs=1 seek=$((4096 * 300)) conv=notrunc 2> /dev/null
        sync
    done
    check read-damaged sh -c '! dd if=/dev/mapper/root of=/dev/null bs=4096 skip=300 count=1'
    check read-beside dd if=/dev/mapper/root of=/dev/null bs=4096 skip=310 count=1
    check close-damaged veritysetup close root
    echo "end"
    sync
    reboot -f
esac

# --- hfl and busybox alone ---
check create hfl luks create v --size 40M $fast --key-file key
check open hfl luks open v vol --key-file key
check node test -b /dev/mapper/vol
check status sh -c 'hfl luks status vol | grep -q "kernel keyring"'
check no-key-in-keyrings sh -c '! grep -q logon /proc/keys'
refused name-in-use "in use" hfl luks open v vol --key-file key
refused file-in-use "in use" hfl luks open v vol2 --key-file key
refused export-for-writing-in-use "in use" hfl --role ps0 --ps-hosts 127.0.0.1:60002 --attestation sim --volume v --key-file key
check close hfl luks close vol
clean clean-after-close
refused wrong-key "no keyslot" hfl luks open v vol --key-file wrong
clean clean-after-wrong-key
check mount hfl luks mount v /mnt --name vol --key-file key
check write sh -c 'mkdir /mnt/model && echo hello > /mnt/model/greeting && seq 1 2000 > /mnt/seq'
check mount-flags sh -c 'grep " /mnt " /proc/mounts | grep nosuid | grep nodev | grep -q noexec'
refused close-while-mounted "in use" hfl luks close vol
check still-there says /mnt/model/greeting hello
check unmount hfl luks unmount /mnt
clean clean-after-unmount
check remount hfl luks mount v /mnt --read-only --key-file key
check reread says /mnt/model/greeting hello
refused read-only "Read-only" sh -c 'echo x > /mnt/x'
check unmount-again hfl luks unmount /mnt
clean clean-after-read-only
check export hfl luks export v --files out --key-file key
check exported says out/model/greeting hello
check exported-seq sh -c 'seq 1 2000 | cmp - out/seq'
refused no-such-mapping "vol" hfl luks status vol
head -c 20971520 /dev/urandom > noise
refused no-header "no LUKS2" hfl luks open noise vol --key-file key
check create-empty hfl luks create e --size 24M $fast --no-file-system --key-file key
refused mount-of-nothing "mount" hfl luks mount e /mnt --name vol --key-file key
clean clean-after-failed-mount
check create-detached hfl luks create d --size 24M $fast --header d.header --key-file key
check mount-detached hfl luks mount d /mnt --header d.header --name vol --key-file key
check unmount-detached hfl luks unmount /mnt
clean clean-after-detached

# --- a file system that the kernel did not unmount: its journal is replayed by hfl ---
check crash-mount hfl luks mount v /mnt --name vol --key-file key
check crash-write sh -c 'echo crash > /mnt/crash; echo again > /mnt/model/greeting; sync'
cp v crashed
check crash-unmount hfl luks unmount /mnt
check crash-export hfl luks export crashed --files crashed-out --key-file key
check crash-content says crashed-out/crash crash
check crash-replaced says crashed-out/model/greeting again

# --- integrity ---
check integrity-create hfl luks create i --size 32M --integrity $fast --key-file key
check integrity-mount hfl luks mount i /mnt --name vol --key-file key
check integrity-write sh -c 'echo tagged > /mnt/greeting; seq 1 20000 > /mnt/seq; sync'
cp i integrity-crashed
check integrity-unmount hfl luks unmount /mnt
clean clean-after-integrity
check integrity-export hfl luks export i --files i-out --key-file key
check integrity-exported says i-out/greeting tagged
check integrity-journal hfl luks export integrity-crashed --files ic-out --key-file key
check integrity-journal-content sh -c 'seq 1 20000 | cmp - ic-out/seq'
check integrity-again hfl luks mount i /mnt --key-file key
check integrity-reread says /mnt/greeting tagged
check integrity-close hfl luks unmount /mnt
cp i j
hfl luks export j --raw /tmp/plain --key-file key > /dev/null 2>&1
rm plain
dd if=/dev/urandom of=j bs=1M seek=18 count=10 conv=notrunc 2>/dev/null
refused integrity-noticed "authentication" hfl luks export j --raw plain --key-file key
rm -f plain j noise e d d.header integrity-crashed

# --- integrity and size: what is killed under the kernel is read by us, and the other way round ---
hfl luks create k --size 32M --integrity $fast --key-file key > /dev/null
for round in 1 2 3; do
    check killed-kernel-mount-$round hfl luks mount k /mnt --name vol --key-file key
    [ $round = 1 ] || check killed-kernel-reread-$round sh -c 'seq 1 20000 | cmp - /mnt/synced'
    seq 1 20000 > /mnt/synced
    sync
    # Ended at any moment; the state is taken before the kernel's timers write more.
    (while :; do seq $round 90000 > /mnt/unsynced; sync; done) 2>/dev/null &
    writer=$!
    sleep $round
    kill -9 $writer
    killall -9 seq 2>/dev/null
    wait $writer 2>/dev/null
    while pidof sync > /dev/null; do :; done
    cp k killed
    check killed-kernel-unmount-$round hfl luks unmount /mnt
    check killed-kernel-export-$round hfl luks export killed --files killed-out-$round --key-file key
    check killed-kernel-content-$round sh -c "seq 1 20000 | cmp - killed-out-$round/synced"
    mv killed k
done
rm -rf killed-out-*
hfl luks create k2 --size 256M --integrity $fast --key-file key > /dev/null
mkdir data
head -c 24584 /data_batch_1.bin > data/data_batch_1.bin
killed="--attestation sim --worker-hosts 127.0.0.1:1 --ps-hosts 127.0.0.1:60003 --model resnet18"
hfl --role worker0 --min-batch 1 $killed --data data --model-dir worker > /dev/null 2>&1 &
worker=$!
for round in 1 2; do
    hfl --role ps0 $killed --evaluate-every 0 --steps 200 --batch-size 2 --checkpoint-every 1 --volume k2 --key-file key > ps0.out 2>&1 &
    ps0=$!
    for second in $(seq 120); do grep -q '^step: ' ps0.out && break; sleep 1; done
    sleep $round
    kill -9 $ps0
    wait $ps0 2>/dev/null
    check killed-ours-mount-$round hfl luks mount k2 /mnt --name vol --key-file key
    check killed-ours-read-$round sh -c 'cat /mnt/model/* > /dev/null && test -s /mnt/model/manifest.json'
    echo $round > /mnt/kernel
    check killed-ours-unmount-$round hfl luks unmount /mnt
done
kill -9 $worker
wait $worker 2>/dev/null
clean clean-after-kills
rm -f k2
truncate -s 120M k
check grown-integrity hfl luks resize k --key-file key
check grown-integrity-mount hfl luks mount k /mnt --name vol --key-file key
check grown-integrity-fill sh -c 'head -c 80000000 /dev/urandom > /mnt/large && sync && seq 1 20000 | cmp - /mnt/synced'
sum=$(sha256sum < /mnt/large)
check grown-integrity-unmount hfl luks unmount /mnt
check grown-integrity-export hfl luks export k --files grown-out --key-file key
check grown-integrity-content [ "$(sha256sum < grown-out/large)" = "$sum" ]
rm -rf k grown-out

# --- a role trains into a mounted volume ---
hfl luks create t --size 480M $fast --key-file key > /dev/null
check train-mount hfl luks mount t /mnt --name vol --key-file key
job="--attestation sim --worker-hosts 127.0.0.1:1 --ps-hosts 127.0.0.1:60002"
hfl --role ps0 $job --evaluate-every 0 --steps 2 --batch-size 2 --model-dir /mnt/model > ps0.out 2>&1 &
check train-worker hfl --role worker0 --min-batch 1 $job --data data --model-dir worker
wait
check train-server grep -q '^parameters: sha256:' ps0.out
check train-unmount hfl luks unmount /mnt
clean clean-after-training
check train-export hfl luks export t --files t-out --key-file key
check train-exported test -s t-out/model/model.ckpt-data
rm -rf t t-out

# --- without privileges: no root, no device nodes, nothing of the kernel but files ---
mkdir -p /etc /tmp/nobody
echo 'nobody:x:65534:65534:nobody:/:/bin/sh' > /etc/passwd
chown nobody /tmp/nobody key
chmod 600 /dev/mapper/control /dev/loop*
nobody() { su nobody -s /bin/sh -c "cd /tmp/nobody && $*"; }
check nobody-creates nobody hfl luks create w --size 480M $fast --key-file ../key
nobody hfl --role ps0 $job --evaluate-every 0 --steps 1 --batch-size 2 --volume w --key-file ../key > ps0.out 2>&1 &
check nobody-worker nobody hfl --role worker0 --min-batch 1 $job --data ../data --model-dir worker
wait
check nobody-trained grep -q '^parameters: sha256:' ps0.out
check nobody-exports nobody hfl luks export w --files out --key-file ../key
check nobody-exported test -s nobody/out/model/model.ckpt-data
# A block device of nobody's: filled, used, grown.
truncate -s 64M nobody.disk
loop=$(losetup -f)
losetup $loop nobody.disk
chown nobody $loop
chmod 600 $loop
check nobody-fills nobody hfl luks create $loop $fast --key-file ../key
truncate -s 200M nobody.disk
losetup -c $loop
check nobody-grows nobody "hfl luks resize $loop --key-file ../key | grep -q 'was 48 MiB'"
check nobody-grown nobody "hfl luks resize $loop --key-file ../key | grep -q 'as before'"
losetup -d $loop
chown 0 $loop
rm nobody.disk
refused nobody-mounts "Permission denied\|Operation not permitted" nobody hfl luks mount w /tmp/nobody/mnt --key-file ../key
clean clean-after-nobody
rm -rf nobody
chown 0 key

# --- a role keeps its model in the volume by itself, with a passphrase from the secret service; a trusted
# node fetches the volume, and the standard tools mount it there ---
printf 'of the service' > word
echo '{"hfl-tdx-coco-app":"of the service"}' > secrets.json
hfl luks create u --size 480M $fast --key-file word > /dev/null
hfl secret serve --attestation sim --secrets secrets.json --listen 127.0.0.1:50051 2> secret.out &
service=$!
hfl --role ps0 $job --evaluate-every 0 --steps 1 --batch-size 2 --volume u --secret-service 127.0.0.1:50051 --linger 600 > ps0.out 2>&1 &
ps0=$!
for second in $(seq 60); do grep -q "gets the secret" secret.out && break; sleep 1; done
sleep 1
refused mount-of-a-volume-in-use "in use" hfl luks mount u /mnt --name vol --key-file word
check volume-worker hfl --role worker0 --min-batch 1 $job --data data --model-dir worker
check volume-pull hfl model pull --attestation sim --from 127.0.0.1:60002 --out pulled
wait $ps0
check volume-server grep -q '^parameters: sha256:' ps0.out
kill $service
check service-ends wait $service
check service-log hfl secret audit
clean clean-after-volume
rm u
theirs=yes
check volume-theirs-opens cryptsetup open --key-file word pulled vol
check volume-theirs-mounts mount -t ext4 /dev/mapper/vol /mnt
check volume-theirs-reads test -s /mnt/model/model.ckpt-data
umount /mnt
check volume-theirs-fsck /sbin/e2fsck -fn /dev/mapper/vol
check volume-theirs-closes cryptsetup close vol
check volume-evaluated sh -c 'head -c 3073 /data_batch_1.bin > data/test_batch.bin && hfl eval --volume pulled --key-file word --data data --threads 1 | grep -q "the last of job"'
rm -f pulled

# --- crossed with cryptsetup, in size ---
truncate -s 100M v
check ours-grows hfl luks resize v --key-file key
check theirs-opens-grown cryptsetup open --key-file key v vol
check theirs-fsck-grown /sbin/e2fsck -fn /dev/mapper/vol
check theirs-closes-grown cryptsetup close vol
truncate -s 200M v
check theirs-opens-larger cryptsetup open --key-file key v vol
check theirs-fsck-larger /sbin/e2fsck -fy /dev/mapper/vol
check theirs-grows /sbin/resize2fs /dev/mapper/vol
check theirs-closes-larger cryptsetup close vol
check ours-reads-larger hfl luks resize v --key-file key

# --- crossed with cryptsetup ---
check theirs-opens-ours cryptsetup open --key-file key v vol
check theirs-mounts-ours mount -t ext4 /dev/mapper/vol /mnt
check theirs-reads-ours says /mnt/model/greeting again
echo crossed > /mnt/crossed
umount /mnt
check ours-status-of-theirs sh -c 'hfl luks status vol | grep -q aes-xts-plain64'
check ours-closes-theirs hfl luks close vol
clean clean-after-crossing
check ours-reads-theirs hfl luks export v --files v-out --key-file key
check crossed-content says v-out/crossed crossed
check ours-opens hfl luks open v vol --key-file key
check theirs-status-of-ours sh -c 'cryptsetup status vol | grep -q "type:.*LUKS2"'
check fsck /sbin/e2fsck -fn /dev/mapper/vol
check theirs-closes-ours cryptsetup close vol
clean clean-after-their-close
head -c 33554432 /dev/zero > c
check theirs-format cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 c key
check ours-opens-theirs hfl luks open c vol --key-file key
check mke2fs /sbin/mke2fs -q -t ext4 /dev/mapper/vol
check ours-closes hfl luks close vol
check ours-mounts-theirs hfl luks mount c /mnt --key-file key
echo theirs > /mnt/greeting
check ours-unmounts-theirs hfl luks unmount /mnt
check ours-exports-theirs hfl luks export c --files c-out --key-file key
check theirs-content says c-out/greeting theirs
check theirs-opens-our-integrity cryptsetup open --key-file key i vol
check theirs-mounts-our-integrity mount -t ext4 /dev/mapper/vol /mnt
check theirs-reads-our-integrity says /mnt/greeting tagged
umount /mnt
check ours-closes-their-integrity hfl luks close vol
clean clean-after-their-integrity
rm -f c
head -c 33554432 /dev/zero > c
check theirs-format-integrity cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
    --integrity hmac-sha256 --sector-size 4096 c key
check ours-opens-their-integrity hfl luks open c vol --key-file key
check mke2fs-integrity /sbin/mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/vol
check theirs-closes-our-integrity cryptsetup close vol
clean clean-after-their-integrity-close
check ours-reads-their-integrity hfl luks export c --files ci-out --key-file key
echo "end"
sync
reboot -f
