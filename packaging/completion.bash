# Completion of vfpool for bash 4.2 and later, with and without the package bash-completion.
# Reads files only, runs no program, and prints no errors.
# shellcheck shell=bash

_vfpool() {
    local word
    COMPREPLY=()
    # In a subshell, which sets the shell options that this code needs.
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(_vfpool_words 2>/dev/null)
}

# The options of a command.
_vfpool_options() {
    case $1 in
        check) echo --json ;;
        list) echo --groups --watch --json --metrics ;;
        explain) echo --guest --json ;;
        dumpxml) echo --hostdev --interface ;;
        adopt) echo --rom-off --dry-run ;;
        attach) echo --interface --rom-off --live --config --dry-run ;;
        detach) echo --force --live --config --dry-run ;;
        start)
            echo --console --paused --autodestroy --bypass-cache --force-boot --reset-nvram --pass-fds --dry-run
            ;;
        rewrite | hook) echo --dry-run ;;
        setup | reconcile) echo --queued --dry-run ;;
        release) echo --force --dry-run ;;
        '') echo --version ;;
    esac
    echo --help
}

# Prints the completions of the word at the cursor, one per line, quoted for the command line.
_vfpool_words() {
    set +efux
    shopt -s nullglob
    shopt -u failglob nocasematch dotglob
    IFS=$' \t\n'
    local root=${VFPOOL_ROOT-} command='' place=0 last='' only_places='' given=' ' index glue='' current=''
    local -a words=()
    # readline splits words at colons and =. Join the parts of addresses and of --option=value again.
    for ((index = 1; index <= COMP_CWORD; index++)); do
        if [[ ${#words[@]} -gt 0 && (-n $glue || ${COMP_WORDS[index]} == [:=]) ]]; then
            words[${#words[@]} - 1]+=${COMP_WORDS[index]}
        else
            words+=("${COMP_WORDS[index]}")
        fi
        if [[ ${COMP_WORDS[index]} == [:=] ]]; then glue=yes; else glue=; fi
    done
    index=$((${#words[@]} - 1))
    current=${words[index]}
    unset "words[index]"
    # Find the command, and count its arguments that are not options.
    for last in ${words[@]+"${words[@]}"}; do
        if [[ -z $only_places && $last == -- ]]; then
            only_places=yes
        elif [[ -z $only_places && $last == -* ]]; then
            given+="$last "
        elif [[ -z $command ]]; then
            command=$last
        elif [[ $given != *' --pass-fds ' && $given != *' --interface ' || $command == dumpxml ]]; then
            place=$((place + 1))
        else
            # The value of the option before it.
            given+='- '
        fi
    done
    if [[ -z $only_places && $last == --pass-fds ]]; then return; fi
    if [[ -z $only_places && $current == -* ]]; then
        _vfpool_offer "$(_vfpool_options "$command")"
        return
    fi
    # The value of this option, a MAC address, cannot be guessed.
    if [[ -z $only_places && $last == --interface && $command == attach ]]; then return; fi
    case $command:$place in
        :*) _vfpool_offer 'check list explain dumpxml adopt attach detach start rewrite setup reconcile release hook help' ;;
        help:0) _vfpool_offer 'check list explain dumpxml adopt attach detach start rewrite setup reconcile release hook' ;;
        hook:0) _vfpool_offer 'install remove' ;;
        list:*) _vfpool_pools ;;
        dumpxml:0) _vfpool_pools && _vfpool_devices ;;
        explain:0)
            _vfpool_guests
            [[ $given == *' --guest '* ]] || { _vfpool_devices && _vfpool_netdevs; }
            ;;
        setup:*) _vfpool_pfs ;;
        adopt:0 | attach:0 | detach:0 | start:0 | release:0) _vfpool_guests ;;
        adopt:1 | attach:1 | detach:1) _vfpool_pools ;;
        adopt:2 | detach:2 | release:1) _vfpool_devices ;;
    esac
}

# Offers these words, except options that are on the command line already.
_vfpool_offer() {
    local word
    for word in $1; do
        [[ $word == "$current"* && $given != *" $word "* ]] && printf '%s\n' "$word"
    done
    return 0
}

# Offers a name, which may contain any character. It is quoted as one word, so that the shell runs nothing in it.
_vfpool_name() {
    local word quoted typed=${current#[\"\']} quote=
    [[ $typed == "$current" ]] || quote=${current:0:1}
    [[ -n $1 ]] || return 0
    printf -v quoted %q "$1"
    if [[ -n $quote ]]; then
        # Inside quotes, offer it only if it contains nothing that is special there.
        word=$1
        [[ $word == "$typed"* && $word != *[[:cntrl:]\"\'\$\`\\!]* ]] && printf '%s\n' "$word"
        return 0
    fi
    for word in "$quoted" "$1"; do
        [[ $word == "$current"* ]] || continue
        # readline replaces only the part after the last colon.
        [[ ${COMP_WORDBREAKS-} != *:* ]] || quoted=${quoted#"${current%"${current##*:}"}"}
        printf '%s\n' "$quoted"
        return 0
    done
}

_vfpool_guests() {
    local file seen=/
    for file in "$root"/etc/libvirt/qemu/*.xml "$root"/run/libvirt/qemu/*.xml; do
        file=${file##*/}
        [[ $seen == *"/$file/"* ]] || _vfpool_name "${file%.xml}"
        seen+=$file/
    done
}

_vfpool_pools() {
    local file text
    for file in "$root"/etc/vfpool/pools.d/*.xml; do
        text=
        [[ ! -f $file ]] || IFS= read -r -d '' text <"$file"
        if [[ $text =~ '<name>'[[:space:]]*([^<\&]*[^<\&[:space:]])[[:space:]]*'</name>' ]]; then
            _vfpool_name "${BASH_REMATCH[1]}"
        fi
    done
    return 0
}

# Devices, in the notation that the user has begun to type.
_vfpool_devices() {
    local device form
    for device in "$root"/sys/bus/pci/devices/*; do
        device=${device##*/}
        form=$device
        if [[ $current == p* ]]; then
            form=pci_${device//[:.]/_}
        elif [[ -n $current && $device != "$current"* ]]; then
            form=${device#0000:}
        fi
        _vfpool_name "$form"
    done
}

# Network interfaces of PCI devices.
_vfpool_netdevs() {
    local netdev
    for netdev in "$root"/sys/bus/pci/devices/*/net/*; do _vfpool_name "${netdev##*/}"; done
}

# Devices that can have VFs, by address and by network interface.
_vfpool_pfs() {
    local pf netdev
    for pf in "$root"/sys/bus/pci/devices/*/sriov_totalvfs; do
        pf=${pf%/*}
        _vfpool_name "${pf##*/}"
        for netdev in "$pf"/net/*; do _vfpool_name "${netdev##*/}"; done
    done
}

complete -F _vfpool vfpool
